"""Starter configurations: what `experiments.prepare` writes beside a data set, so that it can be trained on as it is.

`pretrain.py` learns from all sensors without labels; `finetune_<label>.py` learns one label, or heights. They state
only what differs from `configs.common` and `configs.finetune.common`, and are a person's to change. Sizes fit two CPU
cores for minutes (our choice).
"""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.finetune import common
from input_pipeline.schema import BOXES, CLASSES, MAP, MULTILABEL, TRACKS, Metadata
from ringmoe_jax import files
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.models.swin import windows
from ringmoe_jax.sensors import COMPLEX

PRETRAIN, FINETUNE = "pretrain.py", "finetune_{}.py"
PATCH = 4  # pixels: the model's default
GRID, WINDOW, STAGES = 32, 8, 4  # at most: tokens a side, tokens a side of a window, stages
BATCH, FRAMES = 8, 2  # images of a step; series of a tracking step, which show several images each
EPOCHS, STEPS = 40, (150, 600)  # of fine-tuning, and the fewest and most steps
PRETRAIN_STEPS = (200, 800)
HEIGHT = "m above ground"  # unit of a sensor whose pixels are a truth
_SHOWN = 8  # names in a comment

_FCN = dict(name="fcn", channels=64)
_CHANGE = dict(name="change_difference", channels=64)
_FCOS = dict(name="fcos", channels=32, depth=2, groups=8, finer=1)
_HEIGHT = dict(name="height", channels=64, bins=32)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of a Swin encoder that tile an image.

    Attributes:
        size: rows and columns of the image in pixels.
        patch: rows and columns of a patch in pixels.
        depths: blocks of every stage.
        window: rows and columns of a window in tokens.
    """

    size: int
    patch: int
    depths: tuple[int, ...]
    window: int

    @staticmethod
    def of(side: int) -> Geometry:
        """The geometry of a tile of `side` pixels, without resizing it where that can be: at most `GRID` tokens a
        side, as many stages as can be, patches of 4 pixels or little more."""
        for size in (side, *(side // unit * unit for unit in (32, 16, 8)), 8):
            found = [(patch < PATCH, -stages, patch) for patch, stages in _pyramids(size)]
            if found:
                _, stages, patch = min(found)
                grid = size // patch
                window = max(w for w in windows(grid, -stages) if w <= WINDOW)
                return Geometry(size, patch, (2,) * -stages, window)
        raise AssertionError("8 pixels are 4 x 4 patches")


@dataclasses.dataclass(frozen=True)
class Target:
    """One thing that a data set can teach.

    Attributes:
        name: of the label or the sensor.
        task: `name` and fields beside the target.
        head: see `DownstreamConfig`; {} is the task's default.
        names: classes, for the comment.
        sensor: whose grid it lies on, "" for whole images.
        batch: samples of a step.
    """

    name: str
    task: dict[str, Any]
    head: dict[str, Any]
    names: tuple[str, ...]
    sensor: str = ""
    batch: int = BATCH


@dataclasses.dataclass(frozen=True)
class _Own:
    """Where sensors of one's own come from.

    Attributes:
        modules: that register some.
        given: how a sensor was named, by its own name.
    """

    modules: tuple[str, ...]
    given: Mapping[str, str]

    @property
    def lines(self) -> list[str]:
        return [f"config.modules = {_code(self.modules)}"] * bool(self.modules)

    def name(self, sensor: str) -> str:
        return self.given.get(sensor, sensor)

    def names(self, sensors: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(self.name, sensors))


def targets(metadata: Metadata) -> list[Target]:
    """What a data set can teach: its labels of two classes or more, objects, and heights above ground."""
    found = []
    for name, info in metadata.labels.items():
        kind = ("change" if info.change else "segmentation") if info.kind == MAP else _TASKS.get(info.kind)
        if kind is None or (info.kind not in (BOXES, TRACKS) and len(info.names) < 2):
            continue
        more = dict(rotated=True) if info.oriented else {}
        more |= dict(ignore=info.unscored) if info.unscored and kind == "segmentation" else {}
        head = {"change": _CHANGE, "segmentation": _FCN, "detection": _FCOS, "tracking": _FCOS}.get(kind, {})
        batch = FRAMES if info.kind == TRACKS else BATCH
        found.append(Target(name, dict(name=kind) | more, head, info.names, info.sensor, batch))
    for name, info in metadata.sensors.items():
        if info.unit == HEIGHT and info.mean is not None and len(metadata.sensors) > 1:
            highest = 10.0 * math.ceil(max(1.0, info.mean[0] + 5 * info.std[0]) / 10)
            found.append(Target(name, dict(name="height"), _HEIGHT | dict(max_height=highest), (), name))
    return found


_TASKS = {CLASSES: "classification", MULTILABEL: "multilabel", BOXES: "detection", TRACKS: "tracking"}


def write(folder: Path, modules: Sequence[str] = (), sensors: Sequence[str] = ()) -> list[str]:
    """Writes the configurations of a data set, but none that is there.

    Args:
        folder: of the data set.
        modules: Python modules that register its sensors.
        sensors: its sensors as they were named, for those of one's own file, "module:NAME".

    Returns:
        Commands that use them, fine-tuning first.
    """
    metadata = Metadata.from_json(json.loads((folder / "metadata.json").read_text()), str(folder / "metadata.json"))
    info = json.loads((folder / "dataset_info.json").read_text())
    samples = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
    own = _Own(tuple(modules), {sensor_table.get(name).name: name for name in sensors})
    texts, commands = {}, []
    for target in targets(metadata):
        path = folder / FINETUNE.format(target.name)
        texts[path] = _finetune(folder, metadata, target, samples, own)
        commands.append(_command("finetune", path, f"{folder.name}_{target.name}"))
    path = folder / PRETRAIN
    texts[path] = _pretrain(folder, metadata, samples, own)
    commands.append(_command("pretrain", path, folder.name))
    new = {path: text for path, text in texts.items() if not path.exists()}
    for path, text in new.items():
        files.write_text(path, text)
    if files.read_manifest(folder) is not None:  # one of an older version has none, and needs none
        files.seal(folder, [path.name for path in new])
    return commands


def _finetune(folder: Path, metadata: Metadata, target: Target, samples: Mapping[str, int], own: _Own) -> str:
    shown = tuple(name for name in metadata.sensors if name != target.name)
    if target.task["name"] == _TASKS[TRACKS]:
        shown = (target.sensor,)
    read = (*shown, target.name) if target.name in metadata.sensors else shown
    geometry = Geometry.of(_side(metadata, shown, target.sensor))
    usual = dict(patch=PATCH) | common.encoder(shown, geometry.size)
    model = {k: v for k, v in _fields(geometry).items() if usual[k] != v}
    train = samples.get("train", 0)
    batch = max(1, min(target.batch, train))
    path, run = folder / FINETUNE.format(target.name), f"runs/{folder.name}_{target.name}"
    dates = {name: metadata.sensors[name].shape[0] for name in shown}
    scenes = " ".join(f"{name}=SCENE.tif" for name in shown for _ in range(dates[name]))
    classes = f": {_listed(target.names)}" if target.names else ""
    kind = target.task["name"]
    head = f"""{kind.capitalize()} of "{target.name}"{classes}.

    python -m experiments.finetune --config {path} --workdir {run}
    python -m experiments.report   --workdir {run}
"""
    if kind in _WRITTEN:
        predict = f"python -m experiments.predict  --checkpoint {run} --out {_WRITTEN[kind]} {scenes}"
        options = dict(break_long_words=False, break_on_hyphens=False)
        head += "    " + " \\\n        ".join(textwrap.wrap(predict, 108, **options)) + "\n"
    head += f"\n{_counted(folder, samples)}\nAn encoder of pretrain.py: --config.init_from=runs/{folder.name}"
    lines = [
        f"config = common.base({_code(target.task | dict(target=target.name))}, directory={_code(str(folder))}, "
        f"sensors={_code(own.names(read))}, size={geometry.size})"
    ]
    lines += own.lines
    lines += [f"config.model.update({_arguments(model)})"] * bool(model)
    lines += [f"config.head = {_code(target.head)}"] * bool(target.head)
    lines += [f"config.data.batch_size = {batch}"] * (batch != BATCH)
    lines += [f"config.train.steps = {_steps(train, batch, STEPS)}"]
    return _file(head, "configs.finetune", lines)


def _pretrain(folder: Path, metadata: Metadata, samples: Mapping[str, int], own: _Own) -> str:
    names = tuple(metadata.sensors)
    geometry = Geometry.of(_side(metadata, names, ""))
    batch = max(1, min(BATCH, samples.get("train", 0)))
    steps = _steps(samples.get("train", 0), batch, PRETRAIN_STEPS)
    path, run = folder / PRETRAIN, f"runs/{folder.name}"
    head = f"""Masked modelling of {_listed(names)}, without labels: a small mixture of experts.

    python -m experiments.pretrain --config {path} --workdir {run}
    python -m experiments.evaluate --checkpoint {run} --protocol all
    python -m experiments.report   --workdir {run}

{_counted(folder, samples)}"""
    model = dict(sensors=own.names(names), image_size=geometry.size, window=geometry.window)
    model |= dict(patch=geometry.patch) if geometry.patch != PATCH else {}
    model |= dict(power_input=True) if any(map(_is_complex, names)) else {}
    losses = {name: _objective(name) for name in names}
    streams = f"common.streams({_code(names)}, {_code(str(folder))}, crop_scale=(0.4, 1.0))"
    if own.names(names) != names:
        stream = dict(directory=str(folder), crop_scale=(0.4, 1.0))
        streams = _code({name: stream | dict(sensors=(own.name(name),)) for name in names})
    data = dict(image_size=geometry.size, batch_size=batch, mask_unit=2 * geometry.patch, rotate=True)
    train = dict(steps=steps, log_every=20, checkpoint_every=steps // 2)
    train["evaluate_every"] = steps // 4 if "validation" in samples else 0
    lines = [
        f"config = common.ringmoe(width=16, depths={_code(geometry.depths)}, head_width=16)",
        *own.lines,
        f"config.model.update({_arguments(model)})",
        'config.model.update(dtype="float32", remat="none")',
        f"config.objectives = common.masked({_arguments(losses)})",
        f"config.data.streams = {streams}",
        f"config.data.update({_arguments(data)})",
        "config.optimizer = dict(learning_rate=2e-3)",
        f"config.train.update({_arguments(train)})",
    ]
    return _file(head, "configs", lines)


# What `experiments.predict` writes of a scene, by task.
_WRITTEN = dict.fromkeys(("segmentation", "change", "classification", "multilabel", "height"), "map.tif")
_WRITTEN |= {"detection": "boxes.parquet", "tracking": "tracks.parquet"}


def _pyramids(size: int) -> list[tuple[int, int]]:
    """(patch, stages) that tile an image, with 2 tokens a side or more in the last of 2 to `STAGES` stages."""
    found = []
    for patch in (patch for patch in range(2, size // 4 + 1) if size % patch == 0 and size // patch <= GRID):
        grid = size // patch
        stages = [n for n in range(2, STAGES + 1) if grid % 2 ** (n - 1) == 0 and grid >> (n - 1) >= 2]
        found += [(patch, max(stages))] if stages else []
    return found


def _fields(geometry: Geometry) -> dict[str, Any]:
    return dict(patch=geometry.patch, depths=geometry.depths, window=geometry.window)


def _side(metadata: Metadata, names: Sequence[str], grid: str) -> int:
    """Pixels along a tile: of a complex sensor, which is cut and never resized; of `grid`; or of the first sensor."""
    sides = {name: min(metadata.sensors[name].shape[1:]) for name in (*names, *([grid] if grid else []))}
    native = [sides[name] for name in names if _is_complex(name)]
    return min(native) if native else sides[grid or names[0]]


def _is_complex(name: str) -> bool:
    return sensor_table.get(name).resampling == COMPLEX


def _objective(name: str) -> str:
    return "log_total_power" if _is_complex(name) else "masked_l1"


def _steps(samples: int, batch: int, limits: tuple[int, int]) -> int:
    """Steps of `EPOCHS` passes, within limits, in tens."""
    wanted = 10 * math.ceil(EPOCHS * samples / batch / 10)
    return min(max(wanted, limits[0]), limits[1])


def _command(verb: str, path: Path, run: str) -> str:
    return f"python -m experiments.{verb} --config {path} --workdir runs/{run}"


# ---- As text ------------------------------------------------------------------------------------------


def _counted(folder: Path, samples: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count} {split}" for split, count in samples.items())
    return f"Written by experiments.prepare, for tiles of {folder}: {counts}. Yours to change."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _file(head: str, package: str, lines: Sequence[str]) -> str:
    first, _, rest = head.partition("\n")
    body = "\n".join(textwrap.indent(line, "    ") for line in map(_wrapped, lines))
    text = f'"""{first}\n{rest.rstrip()}\n"""\n\nfrom {package} import common\n\n\ndef get_config():\n'
    return f'{text}    """What differs from the shared defaults."""\n{body}\n    return config\n'


def _wrapped(line: str) -> str:
    """A call or tuple that is too long for a line, with one argument a line."""
    if len(line) <= 116 or "(" not in line:
        return line
    opening, inside = line.index("("), line.rindex(")")
    parts, depth, start = [], 0, opening + 1
    for i in range(opening + 1, inside):
        depth += (line[i] in "([{") - (line[i] in ")]}")
        if line[i] == "," and depth == 0:
            parts, start = [*parts, line[start:i].strip()], i + 1
    parts.append(line[start:inside].strip())
    return line[: opening + 1] + "\n" + "".join(f"    {part},\n" for part in parts if part) + line[inside:]


def _code(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return f"dict({_arguments(value)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_code, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_code(value)}" for name, value in values.items())
