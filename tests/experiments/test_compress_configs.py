"""Every shipped configuration, made smaller to each of its sensors: what is left is a configuration of its own."""

from pathlib import Path

import jax
import pytest

from experiments.run import cli
from experiments.run.distil import distillation_config
from ringmoe_jax.compress import Network, merged_config, submodel_config
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.run import PretrainConfig, Run

ROOT = Path(__file__).parents[2]
BUILT = "ringmoe_contrastive"  # whose parts are built too


def shipped() -> list[str]:
    """Pre-training configurations, with every argument that they take."""
    names = []
    for file in sorted((ROOT / "configs").glob("*.py")):
        module = cli._import(str(file))
        if hasattr(module, "get_config"):
            names += [f"{file}:{choice}" for choice in getattr(module, "CHOICES", ())] or [str(file)]
    return names


def run_of(values) -> Run:
    """A run of a configuration, without parameters."""
    return Run({"config": values, "statistics": {}, "step": 0, "versions": {}}, {})


def cases():
    for name in shipped():
        values = cli.read_config(name)
        if values.get("model") and "objectives" in values:  # not those that begin with a run
            for sensor in values["model"]["sensors"]:
                yield pytest.param(values, sensor, Path(name).stem, id=f"{Path(name).stem}-{sensor}")


@pytest.mark.parametrize(("values", "sensor", "name"), list(cases()))
def test_one_sensor_of_a_shipped_configuration(values, sensor, name):
    if values["model"]["name"] == "skysense":
        with pytest.raises(ConfigError, match="cannot be compressed"):
            submodel_config(values["model"], [sensor])
        return
    model = submodel_config(values["model"], [sensor])
    run = run_of(values)
    if not _trained_alone(values, sensor):
        with pytest.raises(ConfigError, match="no objective of the run looks at"):
            run.with_network(Network(model, {}))
        return
    for config in (model, merged_config(model)):
        part = run.with_network(Network(config, {}))
        assert set(part.sensors) == {sensor}
        assert {name for stream in part.data.streams.values() for name in stream.sensors} == {sensor}
        if part.data.views:
            assert part.data.views.grid in ("", sensor)
            assert bool(part.data.views.grid) == bool(PretrainConfig.of(values).data.views.grid)
            assert set(part.data.views.photometric) <= {sensor}
        PretrainConfig.of(distillation_config(part, 100))
    if name == BUILT:
        parts = run.with_network(Network(model, {})).parts
        jax.eval_shape(lambda key: parts.pretext.init(parts.model.init(key), key), jax.random.key(0))


def _trained_alone(values, sensor) -> bool:
    """Whether an objective looks at this sensor and at no other, or at several streams of which it is one."""
    if any(sensor in term.get("streams", ()) for term in values["objectives"].values()):
        return True
    others = set(values["model"]["sensors"]) - {sensor}
    named = [" ".join(map(str, jax.tree.leaves(term))).split() for term in values["objectives"].values()]
    return any(sensor in names and not others & set(names) for names in named)


VIEWS = {
    "grid": "rgb",
    "local": 1,
    "local_sensor": "rgb",
    "local_size": 16,
    "photometric": {"rgb": {"gain": 0.1}, "s1_grd": {"gain": 0.2}},
}


def views_left(views, streams=(("rgb", "s1_grd", "s2_12"),), kept=("s1_grd", "s2_12")):
    """`data.views` of a run of three sensors after some of them went."""
    sensors = ("rgb", "s1_grd", "s2_12")
    model = {"name": "ringmoe", "sensors": sensors, "width": 8, "depths": (1,), "head_width": 8, "image_size": 32}
    values = {
        "model": model | {"window": 8},
        "data": {
            "streams": {str(i): {"directory": "d", "sensors": list(s)} for i, s in enumerate(streams)},
            "image_size": 32,
            "batch_size": 1,
            "mask_unit": 0,
            "views": VIEWS | views,
        },
        "objectives": {s: {"name": "masked_l1", "sensor": s} for s in sensors},
        "pruning": {"every": 5},
    }
    run = run_of(values)
    return run.with_network(Network(submodel_config(run.network.model, kept), {})).record["config"]["data"]["views"]


def test_another_sensor_stands_in_for_the_one_that_views_were_drawn_by():
    views = views_left({})
    assert (views["grid"], views["local"], views["local_sensor"]) == ("s1_grd", 1, "s1_grd")
    assert views["photometric"] == {"s1_grd": {"gain": 0.2}}
    kept = views_left({"grid": "s2_12", "local_sensor": "s2_12"})
    assert (kept["grid"], kept["local_sensor"]) == ("s2_12", "s2_12")


def test_no_sensor_of_all_streams_is_left_to_draw_views_by():
    """Boxes are then drawn by `crop_scale`."""
    views = views_left({}, streams=(("rgb", "s1_grd"), ("rgb", "s2_12")))
    assert (views["grid"], views["local_sensor"]) == ("", "s1_grd")


def test_without_local_crops_no_sensor_is_needed_for_them():
    views = views_left({"local": 0, "local_sensor": ""}, kept=("s1_grd",))
    assert (views["grid"], views["local"], views["local_sensor"]) == ("s1_grd", 0, "")


def test_a_run_that_lost_experts_while_it_trained_is_merged():
    """What says when experts go while a run trains is of no use to one that has none."""
    values = cli.read_config(str(ROOT / "configs" / "ringmoe_micro.py")) | {"pruning": {"every": 5}}
    run = run_of(values)
    part = run.with_network(Network(merged_config(submodel_config(run.network.model, ["rgb"])), {}))
    assert "pruning" not in part.record["config"]
    assert set(part.parts.objectives) == {"rgb"}
