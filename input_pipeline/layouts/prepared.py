"""Data sets that TFDS has prepared: `tfds build NAME --data_dir FOLDER`, then FOLDER is the source."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from input_pipeline.layouts import Opened, Request
from input_pipeline.layouts.files import LABEL
from input_pipeline.layouts.splits import mixing
from input_pipeline.layouts.tiles import Scene
from input_pipeline.places import Places
from input_pipeline.schema import CLASSES, MULTILABEL, Image, LabelInfo
from ringmoe_jax.errors import DataError, nearest


@dataclasses.dataclass(frozen=True)
class Tfds:
    """One data set of TensorFlow Datasets.

    Attributes:
        builder: name and config, for example "eurosat/all".
        images: by sensor, a function from an example to its image.
        gsd: metres a pixel.
        key: feature that tells examples apart.
        label: feature of the class, or of all classes that are present.
        parts: TFDS's split by split; None: TFDS has only "train", of which a tenth is for validation and a tenth for
            testing, by CRC-32 of the key (our choice).
    """

    builder: str
    images: Mapping[str, Callable[[Mapping], Image]]
    gsd: float
    key: str = "filename"
    label: str = "label"
    parts: Mapping[str, str] | None = None

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors that the examples hold."""
        return tuple(self.images)

    @property
    def rule(self) -> str:
        """How splits are made."""
        if self.parts:
            return f"TFDS's {', '.join(self.parts.values())}"
        return "about 80 % / 10 % / 10 % of TFDS's train by CRC-32 of the file's name: our choice"

    def open(self, request: Request) -> Opened:
        """Opens the data set, see `Opened`.

        Raises:
            DataError: it is not prepared there, or has other classes.
        """
        from input_pipeline.cpu_tf import tfds

        builder = tfds.builder(self.builder, data_dir=str(request.source))
        found = builder.info.splits
        wanted = set((self.parts or {"train": "train"}).values())
        if not wanted <= set(found):
            raise DataError(
                f"{request.source} holds the splits {sorted(found)} of {self.builder}, wanted {sorted(wanted)}: "
                f"`tfds build {self.builder} --data_dir {request.source}` prepares it"
            )
        feature = builder.info.features[self.label]
        several = not isinstance(feature, tfds.features.ClassLabel)
        names = tuple((feature.feature if several else feature).names)
        if odd := [name for name in names if name not in request.classes]:
            raise DataError(f'{self.builder} has the class "{odd[0]}": {nearest(odd[0], request.classes)}')
        order = np.array([request.classes.index(name) for name in names])
        kind = MULTILABEL if several else CLASSES
        info = LabelInfo(kind, request.classes, f'feature "{self.label}" of TFDS')
        return Opened(
            {
                split: Places([split], functools.partial(self._scenes, builder, request, order), request.report)
                for split in self._splits()
            },
            {"labels" if several else LABEL: info},
            dict.fromkeys(request.sensors, 1),
            dict.fromkeys(request.sensors, self.gsd),
            self.rule,
        )

    def _splits(self) -> tuple[str, ...]:
        return tuple(self.parts or ("train", "validation", "test"))

    def _scenes(self, builder, request: Request, order: np.ndarray, splits: Sequence[str]) -> Iterator[Scene]:
        from input_pipeline.cpu_tf import tfds

        (split,) = splits  # a file of TFDS is read in one piece
        part = (self.parts or {}).get(split, "train")
        for example in tfds.as_numpy(builder.as_dataset(split=part, shuffle_files=False)):
            key = example[self.key]
            name = key.decode() if isinstance(key, bytes) else f"{split}/{key}"
            if not self.parts and _drawn(name) != split:
                continue
            value = order[example[self.label]]
            if np.ndim(value):
                value, present = np.zeros(len(request.classes), np.float32), value
                value[present] = 1
                labels = {"labels": value}
            else:
                labels = {LABEL: int(value)}
            yield Scene(name, {sensor: self.images[sensor](example) for sensor in request.sensors}, labels)


def _drawn(name: str) -> str:
    """Split of an example: one in ten for validation, one in ten for testing."""
    return {0: "validation", 1: "test"}.get(mixing(name)[0] % 10, "train")
