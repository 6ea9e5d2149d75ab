"""Which record comes when: pure functions of seed and epoch, so that nothing has to be stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ringmoe_jax.errors import ConfigError


class Order:
    """An endless sequence of record positions: epoch after epoch, each a permutation of the records to show.

    It knows nothing of hosts: sample n is the same record however many of them read.
    """

    def __init__(self, records: int | np.ndarray, seed: Sequence[int]):
        """Args: number of records, or positions of those to show; integers >= 0 that seed."""
        self.records, self.seed = records, seed
        self.per_epoch = records if isinstance(records, int) else len(records)
        self._epochs: dict[int, np.ndarray] = {}

    def epoch(self, epoch: int) -> np.ndarray:
        """[per_epoch] int64 positions of the records in one epoch."""
        order = self._epochs.get(epoch)
        if order is None:
            order = np.random.Generator(np.random.Philox([*self.seed, epoch])).permutation(self.records)
            # Neighbouring epochs are read at the same time around a border; older ones never again.
            self._epochs = {**{e: o for e, o in self._epochs.items() if abs(e - epoch) < 2}, epoch: order}
        return order

    def candidates(self, number: int) -> Iterator[int]:
        """The record of sample `number`, then those that replace it if it is broken."""
        epoch, i = divmod(number, self.per_epoch)
        order = self.epoch(epoch)
        for k in range(self.per_epoch):
            yield int(order[(i + k) % self.per_epoch])


def temperature_counts(
    weights: Mapping[str, float], batch_size: int, temperature: float, multiple_of: int = 1
) -> dict[str, int]:
    """Images a step of every stream, in proportion to weight ** (1 / temperature).

    The sum is batch_size * len(weights) and every count a positive multiple of `multiple_of`, so that
    shapes stay static and every device gets equal shares. Units are given by largest remainder, after
    one for every stream.

    Args:
        weights: by stream, number of samples times its configured weight, > 0.
        batch_size: mean number of images a stream.
        temperature: 1 for the data's own proportions, infinity for equal counts.
        multiple_of: number of shards that a stream's images are split over.

    Raises:
        ConfigError: the sum is not a multiple of `multiple_of`, or temperature or a weight is not positive.
    """
    total = batch_size * len(weights)
    if not temperature > 0 or not all(w > 0 for w in weights.values()):
        raise ConfigError(f"temperature = {temperature} with weights {dict(weights)}: wanted numbers > 0")
    if total % multiple_of or total // multiple_of < len(weights):
        raise ConfigError(
            f"{total} images a step for {len(weights)} streams on {multiple_of} shards: "
            f"wanted a multiple of {multiple_of}, at least {multiple_of * len(weights)}"
        )
    logs = {name: math.log(w) / temperature for name, w in weights.items()}
    scaled = {name: math.exp(v - max(logs.values())) for name, v in logs.items()}
    units = total // multiple_of
    ideal = {name: v / sum(scaled.values()) * units for name, v in scaled.items()}
    counts = {name: max(1, math.floor(v)) for name, v in ideal.items()}
    while sum(counts.values()) != units:
        step = 1 if sum(counts.values()) < units else -1
        open_to = [n for n in counts if counts[n] + step >= 1]
        name = max(open_to, key=lambda n: (ideal[n] - counts[n]) * step)
        counts[name] += step
    return {name: count * multiple_of for name, count in counts.items()}
