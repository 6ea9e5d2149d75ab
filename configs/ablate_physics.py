"""Plain masked L1 against every physical objective, one sensor a study, on the sample data.

    python -m experiments.prepare --sample --out data/sample
    python -m experiments.ablate --config configs/ablate_physics.py --out runs/ablation

A study trains the micro model with two stages on one sensor, so that a difference is the objective's alone. A run
takes 25 to 60 s on 2 cores, the first of an arm twice that. Results: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import common, ringmoe_micro


def get_config() -> ConfigDict:
    """The studies behind the README's table of what helps."""
    arms = dict(slc=("slc_dual", arms_slc), grd=("s1_grd", arms_grd), ms=("s2_12", arms_ms), rgb=("rgb", arms_rgb))
    return ConfigDict(dict(studies={name: study(sensor, make(sensor)) for name, (sensor, make) in arms.items()}))


def study(sensor: str, arms: dict, *, baseline: str = "l1") -> dict:
    """The micro configuration with one sensor, and arms of it."""
    base = ringmoe_micro.get_config()
    base.model.update(sensors=(sensor,), depths=(2, 2))
    base.data.streams = {name: stream for name, stream in base.data.streams.items() if name == sensor}
    base.data.batch_size = 8
    base.train.update(steps=250, log_every=50, checkpoint_every=250)
    del base.train.evaluate_every
    del base.objectives
    return dict(config=base, baseline=baseline, arms={name: arm(**terms) for name, terms in arms.items()})


def arm(*, pretext: str = "masked", **objectives: dict) -> dict:
    """An arm with the balance loss beside its objectives."""
    return dict(pretext=dict(name=pretext), objectives=objectives | dict(balance=common.BALANCE))


def arms_slc(sensor: str) -> dict:
    """Single-look complex."""
    of = lambda name, **fields: dict(name=name, sensor=sensor, **fields)  # noqa: E731
    return dict(
        l1=dict(pixels=of("masked_l1")),
        l2=dict(squares=of("masked_l2")),
        total_power=dict(span=of("total_power")),
        log_total_power=dict(span=of("log_total_power")),
        complex_gaussian=dict(power=of("complex_gaussian")),
        textured=dict(texture=of("textured_speckle")),
        wishart=dict(covariance=of("wishart")),
        part_independence=dict(power=of("complex_gaussian"), parts=of("part_independence"), pretext="masked_parts"),
        multilooked=dict(smooth=of("multilooked")),
    )


def arms_grd(sensor: str) -> dict:
    """Multi-looked intensity in dB."""
    of = lambda name, **fields: dict(name=name, sensor=sensor, **fields)  # noqa: E731
    return dict(
        l1=dict(pixels=of("masked_l1")),
        l2=dict(squares=of("masked_l2")),
        speckle=dict(power=of("speckle")),
        textured=dict(texture=of("textured_speckle")),
        boxcar=dict(smooth=of("multilooked")),
        lee=dict(smooth=of("multilooked", filter="lee")),
    )


def arms_ms(sensor: str) -> dict:
    """Multispectral reflectance."""
    of = lambda name, **fields: dict(name=name, sensor=sensor, **fields)  # noqa: E731
    pixels = of("masked_l1")
    return dict(
        l1=dict(pixels=pixels),
        noise_weighted=dict(noise=of("noise_weighted")),
        native_resolution=dict(native=of("native_resolution")),
        indices=dict(pixels=pixels, indices=of("spectral_indices")),
        angle=dict(pixels=pixels, angle=of("spectral_angle")),
        bounds=dict(pixels=pixels, bounds=of("reflectance_bounds")),
    )


def arms_rgb(sensor: str) -> dict:
    """Optical."""
    of = lambda name, **fields: dict(name=name, sensor=sensor, **fields)  # noqa: E731
    pixels = of("masked_l1")
    return dict(
        l1=dict(pixels=pixels),
        l2=dict(squares=of("masked_l2")),
        gradient=dict(pixels=pixels, gradient=of("gradient_l1", scale=0.5)),
        fourier=dict(pixels=pixels, fourier=of("fourier_l1", scale=0.5)),
    )
