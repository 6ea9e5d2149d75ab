import matplotlib as mpl
import numpy as np
import pytest

from experiments.reports import curves, figures
from ringmoe_jax import sensors
from ringmoe_jax.evaluate import quicklook, style
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.evaluate.reconstruction import MODEL, TRIVIAL
from ringmoe_jax.evaluate.routing import GroupSummary
from ringmoe_jax.objectives import LogTotalPower, MaskedL1
from ringmoe_jax.run.evaluation import ComparisonRow, ProbeRow


def score(value):
    return Score(value, value - 0.1, value + 0.1)


def probe(encoder):
    where = dict(dataset="aerial", label="crowns", features="rgb", encoder=encoder)
    return ProbeRow("knn5", 1.0, 1, {"accuracy": score(0.7)}, (), 20, 5, 5, 0, **where)


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


@pytest.mark.parametrize(
    ("name", "shown", "caption"),
    [
        ("rgb", [0, 1, 2], "true colour (red, green, blue)"),
        ("s2_12", [3, 2, 1], "true colour (B04, B03, B02), reflectance"),
        ("ms4", [2, 1, 0], "true colour"),
        ("s1_grd", [0], "VV, dB (sigma0)"),
        ("dem", [0], "elevation, m above the geoid"),
    ],
)
def test_bands_to_show_follow_from_the_sensor_table(name, shown, caption):
    sensor = sensors.get(name)
    pixels = np.random.default_rng(0).normal(size=(4, 4, sensor.channels))
    values, text = quicklook.view(sensor, pixels)
    np.testing.assert_array_equal(values, pixels[..., shown])
    assert text.startswith(caption)


def test_complex_bands_are_shown_as_total_power():
    values, text = quicklook.view(sensors.get("slc_dual"), np.array([[[0.3, 0.4, 0.0, 0.5]]]))
    assert values == pytest.approx(10 * np.log10(0.5))
    assert "dB" in text


def test_hidden_and_unobserved_pixels_can_be_told_from_values():
    valid, hidden = np.array([[True, True, False]]), np.array([[False, True, False]])
    image = quicklook.paint(np.array([[[0.5], [0.5], [0.5]]]), (0.0, 1.0), valid, hidden)
    np.testing.assert_allclose(image[0], [[0.5] * 3, quicklook.HIDDEN, quicklook.NOT_VALID])


def test_stretch_looks_at_valid_pixels_only():
    values = np.linspace(0, 100, 101).reshape(1, -1, 1)
    assert quicklook.stretch(values, np.ones((1, 101), bool)) == pytest.approx((2, 98))
    assert quicklook.stretch(values, values[..., 0] <= 50) == pytest.approx((1, 49))
    low, high = quicklook.stretch(values, np.zeros((1, 101), bool))
    assert low < high


@pytest.mark.parametrize(
    ("objective", "channels"), [(MaskedL1(sensor="s1_grd"), 2), (LogTotalPower(sensor="slc_dual"), 1)]
)
def test_a_perfect_reconstruction_looks_like_the_input(objective, channels):
    sensor = sensors.get(objective.sensor)
    pixels = np.random.default_rng(0).normal(size=(8, 8, sensor.channels)).astype(np.float32)
    values, _ = quicklook.view(sensor, pixels)
    mean, std = np.array(sensor.statistics.mean), np.array(sensor.statistics.std)
    target = (pixels - mean) / std if channels == 2 else (values - objective.mean_db) / objective.std_db
    hidden = np.array([[True, False], [False, False]])
    strip = quicklook.strip(
        sensor,
        sensor.statistics,
        objective,
        quicklook.Tile(3, pixels, np.ones((8, 8), bool), hidden, target, target),
    )
    image, seen, reconstruction, composite = strip.images
    np.testing.assert_allclose(image, reconstruction, atol=1e-4)
    np.testing.assert_allclose(image, composite, atol=1e-4)
    np.testing.assert_allclose(seen[:4, :4], np.broadcast_to(quicklook.HIDDEN, (4, 4, 3)))
    np.testing.assert_allclose(seen[4:], image[4:])


def test_figures_say_what_they_show(tmp_path):
    before = dict(mpl.rcParams)
    image = np.zeros((8, 8, 3))
    load = np.full((3, 2, 4), 0.25)
    load[:, 1] = np.nan
    summary = GroupSummary(load, np.zeros((3, 2)), np.ones((3, 2)), np.ones((3, 2)), (), np.array([9.0, 0.0]))
    losses = {name: score(0.5) for name in (MODEL, *TRIVIAL)}
    where = dict(dataset="aerial", objective="rgb", sensor="rgb")
    compared = ComparisonRow(losses, "image mean", score(-0.1), 5, 5, **where)
    drawn = {
        "tiles": figures.reconstruction("rgb", "true colour", [quicklook.Strip(7, (image,) * 4, (0.0, 1.0))] * 2),
        "losses": curves.losses([{"step": 1, "loss": 2.0, "loss/rgb": 1.0}, {"step": 2, "validation/loss": 1.5}]),
        "experts": figures.experts("specialised", summary, ("optical", "sar_l2")),
        "probes": figures.probes("aerial: crowns", [probe("pre-trained"), probe("random")]),
        "comparison": figures.comparisons([compared]),
    }
    wanted = {
        "tiles": ("what the encoder saw", "tile 7\n0.0 to 1.0"),
        "losses": ("optimiser step", "training", "validation"),
        "experts": ("layer", "expert", "optical"),
        "probes": ("accuracy", "knn5", "pre-trained", "random"),
        "comparison": ("aerial, rgb", "image median", "masked loss (no unit), smaller is better"),
    }
    for name, figure in drawn.items():
        assert set(wanted[name]) <= set(texts(figure)), name
        assert style.save(figure, tmp_path / f"{name}.png").stat().st_size > 5000
    assert "sar_l2" not in texts(drawn["experts"])  # a modality that was not seen
    assert dict(mpl.rcParams) == before


def test_routers_show_one_line_per_modality_that_was_seen():
    series = {"step": np.array([10, 20])}
    series |= {name: np.array([[0.1, np.nan], [0.2, np.nan]]) for name in curves.ROUTER_PANELS}
    figure = curves.routers("collaborative", series, ("optical", "sar"))
    shown = texts(figure)
    assert "collaborative experts: routers during training" in shown
    assert "optical" in shown
    assert "sar" not in shown
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [0.1, 0.2])
