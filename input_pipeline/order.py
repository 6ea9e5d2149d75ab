"""Which record comes when: pure functions of seed, epoch and host, so that nothing has to be stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ringmoe_jax.errors import ConfigError, DataError


class Order:
    """An endless sequence of record positions: epoch after epoch, each a permutation of the records to show.

    Hosts take every `hosts`-th record of the same permutation, cut to equal counts: in an epoch no
    record is seen twice, and at most hosts - 1 records are left out (other ones in every epoch).
    """

    def __init__(self, records: int | np.ndarray, seed: Sequence[int], host: int = 0, hosts: int = 1):
        """Args: number of records, or positions of those to show; integers >= 0 that seed; this host's index; hosts.

        Raises:
            ConfigError: host is not in 0..hosts - 1.
            DataError: there are fewer records than hosts.
        """
        if not 0 <= host < hosts:
            raise ConfigError(f"host = {host}: wanted 0 to {hosts - 1}")
        size = records if isinstance(records, int) else len(records)
        if size < hosts:
            raise DataError(f"{size} samples for {hosts} hosts: wanted at least one sample a host")
        self.records, self.seed, self.host, self.hosts = records, seed, host, hosts
        self.per_epoch = size // hosts
        self._epochs: dict[int, np.ndarray] = {}

    def epoch(self, epoch: int) -> np.ndarray:
        """[per_epoch] int64 positions of this host's records in one epoch."""
        order = self._epochs.get(epoch)
        if order is None:
            permutation = np.random.Generator(np.random.Philox([*self.seed, epoch])).permutation(self.records)
            order = permutation[self.host :: self.hosts][: self.per_epoch]
            # Neighbouring epochs are read at the same time around a border; older ones never again.
            self._epochs = {**{e: o for e, o in self._epochs.items() if abs(e - epoch) < 2}, epoch: order}
        return order

    def candidates(self, step: int) -> Iterator[int]:
        """The record of this host's step-th sample, then those that replace it if it is broken."""
        epoch, i = divmod(step, self.per_epoch)
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
