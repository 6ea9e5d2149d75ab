"""The one rule by which configs name parts, and what it says of names that are none."""

import dataclasses
import sys

import pytest

from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a part of these tests is made from."""

    sides: int = 0


def shape(module="here", **fields):
    """A new class `Square`, as a notebook cell makes one every time it is run."""
    cls = dataclasses.dataclass(frozen=True)(type("Square", (Shape,), {"__annotations__": {}, **fields}))
    cls.__module__, cls.__qualname__ = module, "Square"
    return cls


@pytest.fixture
def shapes():
    registry = Registry("shape", Shape)
    registry.register("square")(shape())
    return registry


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    (tmp_path / "own_shapes.py").write_text(
        f"import dataclasses\nfrom {__name__} import Shape\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Star(Shape):\n    points: int = 5\n\n"
        "PLAIN = Star(points=7)\n\nclass Stranger:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_shapes"
    sys.modules.pop("own_shapes", None)


def test_a_short_name_and_a_name_of_ones_own_file(shapes, own_file):
    assert type(shapes.build(dict(name="square", sides=4), "config.shape")) is shapes["square"]
    star = shapes.build(dict(name=f"{own_file}:Star", points=6), "config.shape")
    assert (star.points, star.sides) == (6, 0)
    assert shapes.find(f"{own_file}:PLAIN").points == 7  # a part without choices is the object itself
    assert type(shapes.build({}, "config.shape", default="square")) is shapes["square"]
    assert list(shapes) == ["square"]  # own files are not entered


def test_the_same_class_again_is_fine_and_another_is_refused(shapes):
    again = shape()
    assert shapes.add("square", again) is shapes["square"] is again
    with pytest.raises(ConfigError, match=r'shape "square" is here.Square already: choose another name'):
        shapes.add("square", shape("elsewhere"))
    thing = shapes.add("thing", Shape(3))
    assert shapes.add("thing", Shape(3)) == thing
    with pytest.raises(ConfigError, match=r'shape "thing" is in the table already: choose'):
        shapes.add("thing", Shape(4))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(name="sqare"), r'^config.shape.name = "sqare" does not exist: did you mean "square"\?'),
        (dict(), r'^config.shape.name = "None" does not exist: \(known: square\)'),
        (dict(name=["square"]), r"does not exist"),
        (dict(name="square", side=4), r'^config.shape.side does not exist: did you mean "sides"\?'),
        (dict(name="nowhere:Star"), r'^config.shape.name = "nowhere:Star" cannot be imported: No module'),
        (dict(name="own_shapes:Sun"), r"own_shapes:Sun.* cannot be imported: .*no attribute 'Sun'"),
        (dict(name="own_shapes:Stranger"), r"is own_shapes.Stranger, wanted a class made from .*Shape"),
        (dict(name="own_shapes:dataclasses"), r"is a module, wanted a Shape"),
        (dict(name="own_shapes:PLAIN"), r"^config.shape.name is Star\(.*wanted a dataclass"),
    ],
)
def test_what_is_no_part_is_one_clear_line(shapes, own_file, values, message):
    with pytest.raises(ConfigError, match=message) as error:
        shapes.build(values, "config.shape")
    assert "\n" not in str(error.value)


def test_without_a_key_the_kind_is_named(shapes):
    with pytest.raises(ConfigError, match=r'^unknown shape "sqare": did you mean "square"\?'):
        shapes.find("sqare")


def test_long_lists_end_after_the_nearest_eight():
    assert nearest("red", ["rad", "blue"]) == 'did you mean "rad"? (known: blue, rad)'
    names = [f"tile_{i:04d}" for i in range(2799)] + ["forest"]
    hint = nearest("forrest", names)
    assert hint.startswith('did you mean "forest"? (known: forest, tile_')
    assert hint.endswith(" and 2,792 more)")
    assert hint.count(",") == 7 + 1  # of eight names and of the number
    assert nearest("x", "abcdefgh") == "(known: a, b, c, d, e, f, g, h)"
    assert nearest("a", "abcdefghi").endswith("and 1 more)")
