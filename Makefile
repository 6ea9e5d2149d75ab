# make demo    environment, sample data, pre-training, probe, compression, report   (first run: 8 to 12 minutes)
# make demo-skysense    the same for SkySense: two views, a teacher, prototypes
# make test    environment, lint, all tests but the slow ones
# make help    everything else

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
SKYSENSE_RUN ?= runs/demo-skysense
DATA ?= data/sample
UV_VERSION := 0.13.9
PY := $(VENV)/bin/python
WORKERS ?= --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

export TF_CPP_MIN_LOG_LEVEL ?= 2
# Compiling the Python files that TensorFlow and JAX import takes 15 s: the first program keeps them for all others, also
# where a container image sets this variable.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env demo demo-skysense test test-all test-peers lint clean

help:
	@echo "make demo      environment, real sample data, pre-training of a micro RingMoE, probe, compression, $(RUN)/report.html"
	@echo "make demo-skysense  the same of a micro SkySense on Sentinel-1/2 pairs, $(SKYSENSE_RUN)/report.html"
	@echo "make test      environment, lint and all tests but the slow ones"
	@echo "make test-all  the slow tests as well"
	@echo "make test-peers  installs PyTorch and timm, and runs their modules beside ours"
	@echo "make lint      ruff"
	@echo "make env       only the environment, in $(VENV)"
	@echo "make clean     removes environment, caches, sample data and runs"
	@echo "PYTHON=python3.12 and VENV=.venv312 choose another interpreter (3.11 or newer)"

env: $(VENV)/ready

# uv installs in seconds what takes pip more than a minute; it lives in the environment that it fills.
$(VENV)/ready: requirements.txt requirements-base.txt requirements-data.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=..." % sys.version_info[:2])'
	@echo "creating the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(PY) -m uv pip install --quiet --python $(PY) -r requirements.txt -r requirements-dev.txt
	@touch $@

demo: env
	@$(PY) -m experiments.prepare --sample --out $(DATA)
	@$(PY) -m experiments.pretrain --config configs/demo.py --workdir $(RUN)
	@$(PY) -m experiments.evaluate --checkpoint $(RUN)
	@$(PY) -m experiments.compress --checkpoint $(RUN) --modality rgb --method mean --distil 60 --out $(RUN)-small
	@$(PY) -m experiments.report --workdir $(RUN)

demo-skysense: env
	@$(PY) -m experiments.prepare --sample --out $(DATA)
	@$(PY) -m experiments.pretrain --config configs/skysense_micro.py --workdir $(SKYSENSE_RUN)
	@$(PY) -m experiments.evaluate --checkpoint $(SKYSENSE_RUN)
	@$(PY) -m experiments.report --workdir $(SKYSENSE_RUN)

test: lint
	$(PY) -m pytest -q -m "not slow" $(WORKERS)

test-all: lint
	$(PY) -m pytest -q $(WORKERS)

test-peers: env
	@$(PY) -m uv pip install --quiet --python $(PY) -r requirements-torch.txt
	$(PY) -m pytest -q tests/interop tests/experiments/test_benchmark.py

lint: env
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet .

clean:
	rm -rf $(VENV) .cache data runs .pytest_cache .ruff_cache .hypothesis
