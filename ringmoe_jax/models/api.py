"""A model is two pure functions over a nested dict of arrays; its config says what else there is to know of it."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh

from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.keys import Keys
from ringmoe_jax.parallel.compiling import run_once
from ringmoe_jax.registry import Registry
from ringmoe_jax.sensors import Sensor, Statistics

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """What the rest of the library knows of a network.

    Attributes:
        init: `init(key) -> params`, a nested dict of float32 arrays.
        apply: `apply(params, batch, *, key=None, train=False) -> outputs`, see `ringmoe_jax.contracts`. Entries of
            `params` that `init` does not make, such as the projections of a pretext task, are not looked at.
        streams: width D of each kind of features, by sensor and "fused": what `outputs["tokens"]` and
            `outputs["fused"]` hold.
        stages: widths D of `outputs["stages"]`, finest first, by sensor; empty where the model does not say.
        told: whether a batch may say which bands of an image are missing, see `ringmoe_jax.contracts`.
        blocks_above: for layer-wise learning rates, the blocks between a part of the parameters and the output, by
            prefix of its path, the longest one counts: {"": 12, "blocks": range(11, -1, -1), "norm": 0}. A sequence
            gives one number to each of stacked blocks, [L, ...] arrays. Empty: the model does not say.
    """

    init: Callable[..., Params]
    apply: Callable[..., dict]
    streams: Mapping[str, int] = dataclasses.field(default_factory=dict)
    blocks_above: Mapping[str, int | Sequence[int]] = dataclasses.field(default_factory=dict)
    stages: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    told: bool = False

    def shapes(self) -> Params:
        """Shapes and dtypes of the parameters, without memory."""
        return jax.eval_shape(self.init, jax.random.key(0))


class Network(NamedTuple):
    """A model's config with its parameters: what every operation of `ringmoe_jax.compress` takes and gives.

    Attributes:
        model: what `ringmoe_jax.models.build` takes, the `config.model` of a run.
        params: what its `apply` takes; entries that are not the model's own are passed on as they are.
    """

    model: dict[str, Any]
    params: Params


@dataclasses.dataclass(frozen=True)
class ModelConfig(abc.ABC):
    """What a model states beside its functions. A model of your own is a frozen dataclass made from this class.

    It needs a field `sensors: tuple[str, ...]`, the images that the model takes, and `build`; the rest has defaults
    that suit an encoder without experts that takes images of any size. A `__post_init__` calls this class's.

    Attributes:
        title: what the literature calls the architecture, for exports and reports; "" is the name of the class.
        unseen: further sensors, that were not there in training: they have no weights and no experts of their own. A
            model whose patch embedding is made from what bands are has it as a field.
        layered: whether `models.network` knows the layers, so that experts can be pruned and merged: the config has
            `moe`, `depths` and `pyramid`, the parameters lie as a `SwinPyramid` under "backbone".
    """

    title: ClassVar[str] = ""
    layered: ClassVar[bool] = False
    sensors: ClassVar[tuple[str, ...]]  # a field of every model
    unseen: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        if not self.sensors:
            raise ConfigError("model.sensors is empty: name at least one sensor")
        object.__setattr__(self, "sensors", sensor_table.own_names(self.sensors))
        if self.unseen:
            object.__setattr__(self, "unseen", sensor_table.own_names(self.unseen))
        if both := set(self.unseen) & set(self.sensors):
            raise ConfigError(f'model.unseen names "{min(both)}", which model.sensors has: name it once')

    @abc.abstractmethod
    def build(
        self,
        sensors: Mapping[str, Sensor] | None = None,
        statistics: Mapping[str, Statistics] | None = None,
        heads: Mapping[str, Mapping[str, int]] | None = None,
        mesh: Mesh | None = None,
    ) -> Model:
        """The network as pure functions, for example by `from_module`.

        Args:
            sensors: what `self.all_sensors` names, for example with bands selected; default: the sensor table.
            statistics: normalisation of each sensor; default: the sensor's own.
            heads: decoder outputs that objectives want, {sensor: {head: channels}}.
            mesh: where the program runs; None is one device.

        Raises:
            ConfigError: the model cannot give these heads, or not of these sensors.
        """

    @property
    def all_sensors(self) -> tuple[str, ...]:
        """Names of the sensors that the model takes, those that were not there in training among them."""
        return (*self.sensors, *self.unseen)

    def with_unseen(self, names: Sequence[str], changed: Sequence[str] = ()) -> ModelConfig:
        """The same model that takes further sensors, which were not there in training.

        Args:
            names: of them.
            changed: sensors of the model that show other bands than in training.

        Raises:
            ConfigError: every sensor has weights of its own in this model.
        """
        raise ConfigError(
            f"the model was not trained on {' and '.join((*names, *changed))}, and what it knows of "
            f"{', '.join(self.sensors)} are weights for their bands: train a RingMoE or SkySense with model.stem = "
            '"physics", or this one with the sensor in model.sensors'
        )

    def stand_ins(self, table: Mapping[str, Sensor] | None = None) -> dict[str, str]:
        """For every sensor that was not there in training the trained one whose place it takes: encoder, image size.

        Args:
            table: the model's sensors; default: those of the sensor table.

        Raises:
            ConfigError: there is none that suits it.
        """
        del table
        return dict.fromkeys(self.unseen, self.sensors[0])

    def what_becomes(self, name: str, table: Mapping[str, Sensor]) -> str:
        """What becomes of the tokens of a sensor that was not there in training, in words.

        Args:
            name: of `self.unseen`.
            table: the model's sensors.
        """
        del name, table
        return "its tokens go the way of all others"

    @property
    def image_sizes(self) -> dict[str, int]:
        """Side in pixels that the images of a sensor must have, of the sensors where the model says so.

        A model that states any takes it from a field `image_size`.
        """
        return {}

    @property
    def has_experts(self) -> bool:
        """Whether there are router groups, so that `outputs["routing"]` is not empty."""
        return False

    @property
    def bias_rate(self) -> float:
        """What a step changes the routers' biases by, see `ringmoe_jax.pretext.balanced`; 0 where there are none."""
        return 0.0

    def with_engine(self, engine: str) -> ModelConfig:
        """The same model whose experts are computed by an engine of `moe.engines`; itself where it has no experts."""
        del engine
        return self

    def submodel(self, network: Network, sensors: Sequence[str]) -> Network:
        """The part of a network of this config that images of some sensors use; all of it where that is not known.

        An export leaves out arrays that no output reads anyway; what only a slice of an array matters to is known here.
        """
        del sensors
        return network


MODELS = Registry("model", ModelConfig)


def chosen_sensors(
    names: Sequence[str],
    sensors: Mapping[str, Sensor] | None = None,
    statistics: Mapping[str, Statistics] | None = None,
) -> tuple[dict[str, Sensor], dict[str, Statistics]]:
    """A model's sensors by name, and their normalisation, from what `ModelConfig.build` is given.

    Raises:
        ConfigError: unknown sensor, or statistics of another number of bands.
    """
    table = sensor_table.resolve(names, sensors)
    values = {name: (statistics or {}).get(name, sensor.statistics) for name, sensor in table.items()}
    for name, sensor in table.items():
        if (bands := len(values[name].mean)) != sensor.channels:
            raise ConfigError(f'statistics of "{name}" have {bands} bands, the sensor has {sensor.channels}')
    return table, values


def params_of(state: nnx.State) -> Params:
    """The arrays of modules as nested dicts whose keys are strings, "0" and on in lists, as checkpoints give them back.

    Flax gives numbers there, and a parameter under 0 is another one than that under "0" to whoever compares the two.
    """

    def named(tree):
        return {str(key): named(part) for key, part in tree.items()} if isinstance(tree, Mapping) else tree

    return named(nnx.to_pure_dict(state))


def from_module(
    make: Callable[[nnx.Rngs], nnx.Module],
    streams: Mapping[str, int] | None = None,
    blocks_above: Mapping[str, int | Sequence[int]] | None = None,
    stages: Mapping[str, tuple[int, ...]] | None = None,
    told: bool = False,
) -> Model:
    """Wraps an `nnx` module class: the functional subset (split, merge) and nothing else of Flax.

    Args:
        make: builds the module from its random number streams. Its `__call__` takes
            `(batch, *, key, train)`.
        streams: see `Model`.
        blocks_above: see `Model`.
        stages: see `Model`.
        told: see `Model`.
    """
    made: dict[str, Any] = {}

    def create(key: jax.Array) -> Params:
        graph, state = nnx.split(make(Keys(key)))
        made["graph"] = graph
        made["state"] = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
        return params_of(state)

    # Making modules takes a second: traced once, here, for `apply`, `Model.shapes` and every initialisation.
    init = run_once(create)
    own = tuple(jax.eval_shape(init, jax.eval_shape(jax.random.key, 0)))

    def apply(params: Params, batch, *, key: jax.Array | None = None, train: bool = False) -> dict:
        state = jax.tree.map(lambda leaf: leaf, made["state"])
        nnx.replace_by_pure_dict(state, {name: params[name] for name in own})
        return nnx.merge(made["graph"], state)(batch, key=key, train=train)

    return Model(init, apply, dict(streams or {}), dict(blocks_above or {}), dict(stages or {}), told)
