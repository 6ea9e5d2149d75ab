"""The same jobs of another checkout, as a rule the version before, in a process of its own that takes turns with ours.

The file runs in both: here it asks, and in a process whose modules are the other checkout's it answers. What it needs
of a checkout is in `jobs` alone, so that it gets along with older ones for as long as these calls exist.

Requests and answers are lines of JSON: {"suite", "asked"} makes jobs and is answered with their names, {"run": name} is
answered when that job has run, and an answer {"error": line} says what went wrong.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ringmoe_jax.errors import ConfigError

SUITES = ("moe", "train", "stem")
SUFFIX = ", before"


def jobs(suite: str, asked: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """Compiled jobs of the checkout that is imported, by name.

    Args:
        suite: of `SUITES`.
        asked: fields of its `Point`; of suite train "config", a file, and "overrides".
    """
    if suite == "train":
        from experiments.benchmarks import moe, train
        from experiments.run import cli
        from ringmoe_jax.run import PretrainConfig

        config = PretrainConfig.of(cli.read_config(asked["config"], asked["overrides"]))
        return train.measured(config.complete(), moe.ENGINES)
    if suite == "stem":
        from experiments.benchmarks import stem

        return stem.jobs(stem.Point(**asked))
    from experiments.benchmarks import moe

    made = moe.programs(moe.Point(**asked)).items()
    return {name: functools.partial(program, *arguments) for name, (program, arguments) in made}


class Version:
    """A checkout whose jobs can be timed; a context manager, which ends its process.

    Args:
        folder: of the checkout.

    Raises:
        ConfigError: there is none, or its process failed.
    """

    def __init__(self, folder: str):
        self._folder = Path(folder).absolute()
        if not (self._folder / "experiments" / "benchmarks").is_dir():
            raise ConfigError(f"--before {folder} is no checkout: git worktree add {folder} COMMIT makes one")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).absolute())],  # without the folder of this file in its path
            cwd=self._folder,
            env=os.environ | {"PYTHONPATH": f"{self._folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Version:
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def jobs(self, suite: str, asked: Mapping[str, Any]) -> dict[str, Callable[[], None]]:
        """As the function `jobs`, of the checkout; names end in `SUFFIX`. Those asked for before are gone."""
        names = self._answer({"suite": suite, "asked": asked})
        return {name + SUFFIX: functools.partial(self._answer, {"run": name}) for name in names}

    def _answer(self, request: Mapping[str, Any]) -> Any:
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": "its process ended"}
        if isinstance(answer, dict):
            raise ConfigError(f"--before {self._folder}: {answer['error']}")
        return answer


def _serve() -> None:
    """Answers requests from standard input until it ends; what jobs print goes to standard error."""
    import jax

    from ringmoe_jax.parallel import host

    host.keep_memory()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    held: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "run" in request:
                jax.block_until_ready(held[request["run"]]())
                answer: Any = []
            else:
                held.clear()  # and with it the memory of older ones
                held.update(jobs(request["suite"], request["asked"]))
                answer = list(held)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
