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
    image = quicklook.paint(np.array([[[0.5], [0.5], [0.5]]]), quicklook.Stretch(0.0, 1.0), valid, hidden)
    np.testing.assert_allclose(image[0], [[0.5] * 3, quicklook.HIDDEN, quicklook.NOT_VALID])


def test_stretch_looks_at_valid_pixels_only():
    values = np.linspace(0, 100, 101).reshape(1, -1, 1)
    assert quicklook.stretch(values, np.ones((1, 101), bool)).limits == pytest.approx((2, 98))
    assert quicklook.stretch(values, values[..., 0] <= 50).limits == pytest.approx((1, 49))
    low, high = quicklook.stretch(values, np.zeros((1, 101), bool)).limits
    assert low < high


ALL = np.ones((8, 8), bool)


def true_colour(name, *reflectance):
    """What a field of one colour, give or take 2 %, looks like."""
    sensor = sensors.get(name)
    values = np.array(reflectance) * np.random.default_rng(0).uniform(0.98, 1.02, (8, 8, 1))
    scale = quicklook.stretch(values, ALL, sensor)
    return quicklook.paint(values, scale, ALL).mean(axis=(0, 1))


def test_a_dark_green_field_is_neither_neon_nor_bright():
    """Grass of Sentinel-2: stretched to its own range, green alone would be full on."""
    red, green, blue = true_colour("s2_12", 0.04, 0.08, 0.033)
    assert blue < red < green
    assert 0.3 < green < 0.7
    assert red / green > 0.6


def test_the_blue_of_the_air_is_taken_away_at_the_top_of_the_atmosphere():
    """Bare ground at the top of the atmosphere is bluest; what is seen of it is not."""
    red, green, blue = true_colour("s2_13", 0.10, 0.105, 0.11)
    assert blue <= green <= red


def test_snow_is_white_and_greys_stay_grey():
    assert true_colour("s2_12", 0.9, 0.9, 0.9) == pytest.approx([1, 1, 1], abs=0.05)
    sensor = sensors.get("s2_12")
    scale = quicklook.stretch(np.full((8, 8, 3), 0.1), ALL, sensor)
    assert (scale.low == scale.low[0]).all()
    assert (scale.high == scale.high[0]).all()
    assert scale.gamma > 1


def test_images_of_eight_bits_are_shown_as_they_are():
    values = np.random.default_rng(0).uniform(0.3, 0.6, (8, 8, 3))
    scale = quicklook.stretch(values, ALL, sensors.get("rgb"))
    np.testing.assert_allclose(quicklook.paint(values, scale, ALL), values, atol=0.06)


@pytest.mark.parametrize(
    ("ground", "text", "share"), [(480.0, "200 m", 200 / 480), (12.8, "5 m", 5 / 12.8), (90_000.0, "20 km", 20 / 90)]
)
def test_scale_bars_are_round_and_of_the_right_length(ground, text, share):
    strip = quicklook.Strip(7, (np.zeros((8, 8, 3)),) * 4, (0.0, 1.0))
    figure = figures.reconstruction("rgb", [strip], ground)
    (bar,) = figure.axes[0].lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(share)
    assert text in texts(figure)
    assert not figures.reconstruction("rgb", [strip]).axes[0].lines  # nobody knows


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
        "tiles": figures.reconstruction("rgb: true colour", [quicklook.Strip(7, (image,) * 4, (0.0, 1.0))] * 2),
        "losses": curves.losses([{"step": 1, "loss": 2.0, "loss/rgb": 1.0}, {"step": 2, "validation/loss": 1.5}]),
        "experts": figures.experts("specialised", summary, ("optical", "sar_l2")),
        "probes": figures.probes("aerial: crowns", [probe("pre-trained"), probe("random")]),
        "comparison": figures.comparisons([compared]),
    }
    wanted = {
        "tiles": ("what the encoder saw", "tile 7\nblack 0.0\nwhite 1.0", "hidden from the encoder", "not observed"),
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
    series |= {name: np.array([[0.1, np.nan], [0.2, np.nan]]) for name in (*curves.ROUTER_PANELS, "most_entropy")}
    figure = curves.routers("collaborative", series, ("optical", "sar"))
    shown = texts(figure)
    assert "collaborative experts: routers during training" in shown
    assert {"optical", "no expert preferred"} <= set(shown)
    assert "sar" not in shown
    assert figure.axes[1].lines[-1].get_ydata() == [0.2, 0.2]  # the entropy of no choice
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [0.1, 0.2])
