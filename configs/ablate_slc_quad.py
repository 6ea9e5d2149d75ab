"""Plain losses against polarimetric likelihoods and constraints on quad-pol single-look data of your own.

    python -m experiments.prepare --source <folder with slc_quad/<name>_HH.tif, _HV, _VH, _VV> --out data/slc_quad \\
        --tile 48 --stride 8
    python -m experiments.ablate --config configs/ablate_slc_quad.py --out runs/ablation_quad

One scene of 200 x 200 pixels is enough to run it: the right quarter is held out. Pixels may be uncalibrated.
"""

from ml_collections import ConfigDict

from configs import common
from configs.ablate_physics import study


def get_config() -> ConfigDict:
    """One study: every arm trains the same small model on 32 px images."""
    chosen = study("slc_quad", arms("slc_quad"))
    chosen["config"].data.streams = common.streams(("slc_quad",), "data/slc_quad", crop_scale=(1.0, 1.0))
    chosen["config"].data.image_size = chosen["config"].model.image_size = 32
    return ConfigDict(dict(studies=dict(quad=chosen)))


def arms(sensor: str) -> dict:
    """Objectives of a complex quad-pol sensor."""
    of = lambda name, **fields: dict(name=name, sensor=sensor, **fields)  # noqa: E731
    power, pauli = of("complex_gaussian"), of("complex_gaussian", basis="pauli")
    return dict(
        l1=dict(pixels=of("masked_l1")),
        l2=dict(squares=of("masked_l2")),
        log_total_power=dict(span=of("log_total_power")),
        complex_gaussian=dict(power=power),
        textured=dict(texture=of("textured_speckle")),
        pauli=dict(pauli=pauli),
        conservation=dict(power=power, pauli=pauli, conservation=of("power_conservation")),
        reciprocity=dict(power=power, reciprocity=of("reciprocity", scale=0.1)),
        wishart=dict(covariance=of("wishart")),
        wishart_reciprocal=dict(reciprocal=of("wishart", reciprocal=True)),
    )
