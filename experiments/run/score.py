"""Scores a fine-tuned run on a split: metrics with intervals beside the best constant answer, and pictures."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.run import data as run_data
from experiments.run.tables import table, with_interval
from input_pipeline.dataset import Dataset
from input_pipeline.evaluation import EvalBatches
from input_pipeline.scenes import Scenes
from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate import bootstrap, quicklook, style
from ringmoe_jax.evaluate.metrics.base import Metric
from ringmoe_jax.evaluate.metrics.base import score as scored
from ringmoe_jax.parallel import processes
from ringmoe_jax.run import RANDOM, TASK, Parts, Run, read_record, results
from ringmoe_jax.run.evaluation import TASK_SCORE, DataSummary, EncoderSummary, SeedScores, TaskScore
from ringmoe_jax.tasks import SENSOR, Example
from ringmoe_jax.tasks.joining import Place, Scene, Tile

BATCH = 16
SHOWN = 4  # samples in a picture
LOOKED_AT = 500  # training samples that the constant answer is taken from
MODEL, CONSTANT = "model", "constant"


def score(
    run: Run,
    datasets: Sequence[str] = (),
    *,
    split: str = "",
    without: Sequence[str] = (),
    seed: int = 0,
    out: str | None = None,
) -> TaskScore:
    """Scores a run beside the best constant answer, and draws what its task draws.

    Args:
        run: of a task.
        datasets: folder of a data set, at most one; default the one that the run was trained on.
        split: default "test" where the data set has one, else "validation".
        without: sensors that the model is not shown: their pixels are taken for not observed.
        seed: of the bootstrap.
        out: folder for numbers and pictures; default `<run>/report`, or a folder in it for other data and splits than
            the default ones.

    Raises:
        UserError: several data sets, no such split or sensor, or truth that cannot be right.
    """
    started, parts = time.perf_counter(), run.parts
    if len(datasets) > 1:
        raise DataError(f"--dataset {' '.join(datasets)}: a fine-tuned run is scored on one data set at a time")
    dataset = run_data.open_labelled(run.config, run.encoder, *datasets)
    _check_classes(run, dataset)
    run_data.check_hidden(without, parts.sensors)
    folder = Path(out) if out else results.folder_of(run.folder / "report", datasets, split, without)
    split = run_data.scored_split(dataset, split)
    answers = _Answers(run, dataset, tuple(without))
    answers(split)
    return results.from_first(TaskScore, lambda: _concluded(answers, split, folder, seed, started))


def _concluded(answers: _Answers, split: str, folder: Path, seed: int, started: float) -> TaskScore:
    """Numbers and pictures of what was answered, written to `folder`; `started` is of `time.perf_counter`."""
    run, dataset, parts, metric = answers.run, answers.dataset, answers.run.parts, answers.metrics[MODEL]
    scores = {name: scored(each, answers.groups, seed) for name, each in answers.metrics.items()}
    drawn = parts.task.figures(f"{dataset.metadata.name}: {parts.target.name}", metric, answers.examples, parts.target)
    result = TaskScore(
        task=run.config.task["name"],
        target=run.spec.target,
        step=run.step,
        encoder=_encoder(run),
        parameters=run.parameters,
        dataset=DataSummary(**dataset.about()),
        split=split,
        samples=answers.samples,
        scenes=answers.scenes,
        blocks=len(np.unique(answers.groups)),
        scores=scores[MODEL],
        constant=scores[CONSTANT],
        without=answers.without,
        classes=results.plain(metric.table()) if hasattr(metric, "table") else {},
        left_out=metric.left_out() if hasattr(metric, "left_out") else (),
        notes=tuple(answers.notes),
        figures={name: style.save(figure, folder / f"task_{name}.png").name for name, figure in drawn.items()},
        seconds=time.perf_counter() - started,
        **results.provenance(),
    )
    results.write(folder / TASK_SCORE, result)
    return result


def current(folder: Path) -> TaskScore:
    """The score of a run's newest checkpoint on its own data; scores it where that was not done yet."""
    step = read_record(folder, (TASK,))["step"]
    path = folder / "report" / TASK_SCORE
    result = results.from_first(TaskScore | None, lambda: results.load(TaskScore, path, step))
    if result is None:
        print(f"step {step} of {folder} was not scored yet: that comes first")
    return result or score(Run.open(folder))


def _check_classes(run: Run, dataset: Dataset) -> None:
    """Raises unless the data set's truth is the one that was learnt."""
    learnt, stored = run.spec.target, run_data.task_spec(run.config, dataset).target
    if stored.names != learnt.names:
        raise DataError(
            f'{dataset.directory} has the classes {", ".join(stored.names)} in "{learnt.name}", the model learnt '
            f"{', '.join(learnt.names)}: score it on a data set with the same classes in this order"
        )


def _differences(run: Run, dataset: Dataset) -> Iterator[str]:
    """What published scores of the target count otherwise."""
    label = dataset.labels.get(run.parts.target.name)
    ignored = getattr(run.parts.task, "ignore", ())
    if ignored:
        yield f"the means leave out {', '.join(ignored)} (task.ignore)"
    if label and set(label.unscored) - set(ignored):
        yield f"the data set's own scores leave {', '.join(label.unscored)} out of their means: set task.ignore to it"
    if label and label.scoring:
        yield label.scoring


def _encoder(run: Run) -> EncoderSummary:
    config, encoder = run.config, run.encoder
    weights = config.weights if config.init_from else RANDOM
    return EncoderSummary(model=encoder.model["name"], init_from=config.init_from, step=encoder.step, weights=weights)


class _Seen(NamedTuple):
    """What the model said of a sample, and what is true; `observed` [T] says on which dates anything was."""

    index: int
    answer: dict[str, np.ndarray]
    truth: Any
    location: np.ndarray
    observed: np.ndarray
    example: Example | None = None


class _Answers:
    """Predictions for all samples of a split, joined to scenes where the data set says what they were cut from.

    Every process makes its share; the first one keeps them.

    Attributes:
        metrics: of the model and of the constant answer.
        groups: of what was scored, which intervals draw together.
        samples: that were scored.
        scenes: that they were joined to; 0 where every one was scored by itself.
        examples: samples to show.
        notes: what a reader has to know.
    """

    def __init__(self, run: Run, dataset: Dataset, without: tuple[str, ...]):
        self.run, self.dataset, self.without = run, dataset, without
        self.metrics: dict[str, Metric] = {}
        self.groups = np.zeros(0, np.int64)
        self.samples = self.scenes = 0
        self.examples: list[Example] = []
        self.notes = list(_differences(run, dataset))
        task, target, model = run.parts.task, run.parts.target, run.parts.model
        self.params = jax.device_put(run.params)
        self.answer = jax.jit(lambda params, batch: task.answer(model.apply(params, batch)["predictions"], target))

    def __call__(self, split: str) -> None:
        cut = self.dataset.scenes(split)
        joined = self._joins(cut)
        order = np.lexsort(cut.origins.T[::-1]) if joined else None
        batches = self._batches(split, positions=order, host=processes.number(), hosts=processes.count())
        own = zip(processes.turns(-(-self.dataset.size(split) // self._rows(split))), batches, strict=False)
        looked = processes.in_turn(self._look(batch, batches, split) for _, batch in own)
        if processes.number():
            for _ in looked:
                pass
        else:
            self._keep(itertools.chain.from_iterable(looked), cut, joined, batches)

    def _keep(self, samples: Iterable[_Seen], cut: Scenes | None, joined: bool, batches: EvalBatches) -> None:
        """Scores all samples, or the scenes that they are joined to."""
        task, target = self.run.parts.task, self.run.parts.target
        constant = task.constant(self._training_truths(), target)
        self.metrics = {n: task.scene_metric(target) if joined else task.metric(target) for n in (MODEL, CONSTANT)}
        counted, locations, scenes = self._counted(samples), [], []
        if joined:
            answered = self._scenes(counted, cut, batches, constant)
        else:
            answered = ((seen, {MODEL: seen.answer, CONSTANT: constant}, seen.truth) for seen in counted)
        for first, answers, truth in answered:
            for name, metric in self.metrics.items():
                task.add(metric, answers[name], truth)
            locations.append(first.location)
            scenes.append(-1 if cut is None else cut.origins[first.index, 0])
        if joined:
            self.scenes = len(scenes)
            self.notes.append(f"{self.samples} tiles are joined to {self.scenes} scenes: {task.joined}")
        groups, scenes = bootstrap.blocks(np.array(locations)), np.array(scenes)
        if (groups < 0).all() and (scenes < 0).any():
            self.notes.append("samples have no coordinates: overlapping ones count as independent")
        self.groups = np.where((groups < 0) & (scenes >= 0), -1 - len(groups) - scenes, groups)
        self.examples.sort(key=lambda example: example.index)

    def _counted(self, samples: Iterable[_Seen]) -> Iterator[_Seen]:
        for seen in samples:
            self.samples += 1
            self.examples += [seen.example] if seen.example else []
            yield seen

    def _joins(self, cut: Scenes | None) -> bool:
        """Whether samples are tiles, which this task joins."""
        if cut is None and self.run.parts.task.joined:
            self.notes.append(
                "an older version wrote the data set, which does not say what its samples were cut from: if they are "
                "tiles that overlap, what two of them show counts twice (prepare it again)"
            )
        return bool(cut and self.run.parts.task.joined and cut.joinable)

    def _look(self, batch: Mapping, batches: EvalBatches, split: str) -> list[_Seen]:
        check_truth(batch, self.run.parts)
        target, hidden = self.run.parts.target, run_data.hide(batch, self.without)
        truth = self.run.parts.task.truth(batch)
        answers = jax.device_get(self.answer(self.params, {"sensors": hidden["sensors"]}))
        shown = set(np.linspace(0, self.dataset.size(split) - 1, SHOWN).astype(int).tolist())
        entry = batch["sensors"].get(target.sensor) or next(iter(batch["sensors"].values()))
        samples = []
        for row in np.flatnonzero(batch["real"]):
            own, true = jax.tree.map(lambda x, row=row: x[row], (answers, truth))
            index, observed = int(batch["index"][row]), entry["valid"][row].any((1, 2))
            seen = _Seen(index, own, true, entry["location"][row], observed)
            if index in shown:
                seen = seen._replace(example=Example(index, self._images(batch, row), own, true, batches.ground))
            samples.append(seen)
        return samples

    def _scenes(self, tiles: Iterable[_Seen], cut: Scenes, batches: EvalBatches, constant) -> Iterator[tuple]:
        """Scene after scene: its first tile, all answers to it, and the truth."""
        task, target = self.run.parts.task, self.run.parts.target
        corners, zoom = batches.corners(cut.origins, target.sensor), batches.zoom(target.sensor)
        side, firsts = batches.size(target.sensor), {}

        def placed(tile: _Seen) -> Tile:
            firsts.setdefault(cut.origins[tile.index, 0], tile)
            place = Place(*corners[tile.index], side, side, int(cut.origins[tile.index, 1]), tile.observed)
            return Tile(place, {MODEL: tile.answer, CONSTANT: constant}, tile.truth)

        for number, several in itertools.groupby(tiles, lambda tile: cut.origins[tile.index, 0]):
            rows, columns = np.floor(corners[cut.origins[:, 0] == number].max(0) + 0.5).astype(int) + side
            if (objects := cut.rows(target.name, number)) is not None:
                objects = objects * np.array([1, *zoom[::-1], *zoom[::-1], *[1] * (objects.shape[1] - 5)])
            scene = Scene(int(rows), int(columns), objects)
            answers, truth = task.join(scene, map(placed, several))
            yield firsts.pop(number), answers, truth

    def _training_truths(self) -> list[Any]:
        task, truths = self.run.parts.task, []
        for batch in self._batches(run_data.TRAIN):
            check_truth(batch, self.run.parts)
            truth = task.truth(batch)
            truths += [jax.tree.map(lambda x, row=row: x[row], truth) for row in np.flatnonzero(batch["real"])]
            if len(truths) >= LOOKED_AT:
                self.notes.append(f"the constant answer is taken from the first {len(truths)} training samples")
                break
        return truths

    def _rows(self, split: str) -> int:
        return min(BATCH, self.dataset.size(split))

    def _batches(self, split: str, **share: Any) -> EvalBatches:
        directory, sensors = self.dataset.directory, tuple(self.dataset.sensors)
        return EvalBatches.of(self.run.data, directory, sensors, split=split, batch_size=self._rows(split), **share)

    def _images(self, batch: Mapping, row: int) -> list[np.ndarray]:
        """What to look at: the dates of the sensor that predictions lie on, or of the first one."""
        parts = self.run.parts
        name = parts.target.sensor if parts.target.kind != SENSOR and parts.target.sensor else next(iter(parts.sensors))
        entry = batch["sensors"][name]
        sensor = self.dataset.sensors[name]
        values = [quicklook.view(sensor, pixels)[0] for pixels in entry["pixels"][row]]
        scale = quicklook.stretch(np.concatenate(values), np.concatenate(entry["valid"][row]), sensor)
        return [quicklook.paint(v, scale, valid) for v, valid in zip(values, entry["valid"][row], strict=True)]


def check_truth(batch: Mapping, parts: Parts) -> None:
    """Raises a `DataError` where the truth of a batch cannot be right."""
    real = batch.get("real")
    truth = parts.task.truth(batch)
    parts.task.check_truth(truth if real is None else jax.tree.map(lambda x: x[real], truth), parts.target)


# ---- Output -------------------------------------------------------------------------------------------


def show(result: TaskScore) -> None:
    """Prints the table of a run."""
    print(f"\n{result.task} of {result.target.name}, {result.dataset.name}/{result.split}, ", end="")
    joined = f" of {result.scenes} scenes" if result.scenes else ""
    print(f"{result.samples} samples{joined} in {result.blocks} blocks; 95 % bootstrap intervals")
    if result.without:
        print(f"without {', '.join(result.without)}")
    rows = [(name, with_interval(s), with_interval(result.constant[name])) for name, s in result.scores.items()]
    print(table(("metric", MODEL, "constant answer"), rows))
    for note in result.notes:
        print(f"note        {note}")
    if result.left_out:
        print(f"note        classes that no sample holds are not scored: {', '.join(result.left_out)}")


def show_seeds(joined: SeedScores) -> None:
    """Prints means over seeds."""
    print(f"\n{joined.task}: mean and 95 % t interval over the seeds {', '.join(map(str, joined.seeds))}")
    print(table(("metric", "mean"), [(name, with_interval(score)) for name, score in joined.scores.items()]))
