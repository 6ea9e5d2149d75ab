"""What SAR sees: polarimetric covariance by material, fully developed speckle, looks.

The scattering vector is S = (HH, HV, VH, VV), in units where |S|^2 is sigma0; C = E[S S^H]. Speckle is
circular complex Gaussian with covariance C (Goodman): S = C^(1/2) z. Geometry (layover, shadow, range
sampling), correlation between pixels and interferometric phase are not modelled.
"""

from __future__ import annotations

import numpy as np

from input_pipeline.synthetic import grid
from input_pipeline.synthetic.scene import CROP, GRASS, MATERIALS, SOIL, Scene
from ringmoe_jax.errors import DataError
from ringmoe_jax.sensors import COMPLEX, DECIBEL, Sensor

POLARISATIONS = ("HH", "HV", "VH", "VV")
NESZ = 1e-3  # noise-equivalent sigma0, linear (-30 dB), independent in every channel: our choice

# Powers of surface, double-bounce and volume scattering in VV, linear sigma0. Our choice, of the order that is
# typical of C band at an incidence of some 35 degrees: water -20 dB, soil -11, forest -9, town about 0.
SCATTERING = {
    "water": (0.010, 0.000, 0.0003),
    "sand": (0.020, 0.000, 0.003),
    "soil": (0.070, 0.000, 0.012),
    "crop": (0.030, 0.010, 0.045),
    "grass": (0.025, 0.004, 0.022),
    "forest": (0.010, 0.020, 0.110),
    "building": (0.150, 0.500, 0.200),
    "road": (0.014, 0.000, 0.002),
    "vehicle": (0.300, 0.600, 0.100),
    "ship": (1.000, 3.000, 0.500),
}
SURFACE, DOUBLE = 0.8, -1.2  # HH over VV amplitude of surface and double-bounce scattering: our choice


def covariance(surface: float, double: float, volume: float, nesz: float = NESZ) -> np.ndarray:
    """[4, 4] complex covariance of three mechanisms and noise (Freeman and Durden 1998).

    Args:
        surface: power in VV of first-order Bragg scattering, HH = `SURFACE` VV; linear sigma0, >= 0.
        double: power in VV of dihedral scattering, HH = `DOUBLE` VV.
        volume: power in VV of thin, randomly oriented dipoles: HV carries a third of it.
        nesz: noise of every channel. Reciprocity makes HV = VH; only noise makes them differ, and C invertible.
    """
    co = np.array([[1, 0, 0, 1 / 3], [0, 1 / 3, 1 / 3, 0], [0, 1 / 3, 1 / 3, 0], [1 / 3, 0, 0, 1]])
    single = [np.array([ratio, 0, 0, 1.0]) for ratio in (SURFACE, DOUBLE)]
    mixed = surface * np.outer(single[0], single[0]) + double * np.outer(single[1], single[1]) + volume * co
    return (mixed + nesz * np.eye(4)).astype(np.complex128)


def check_covariance(matrices: np.ndarray) -> None:
    """Raises unless every matrix is a covariance that speckle can be drawn from.

    Args:
        matrices: [..., P, P].

    Raises:
        DataError: not square, not finite, not Hermitian (to 1e-9 of the largest entry), or not positive definite.
    """
    matrices = np.asarray(matrices)
    if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise DataError(f"covariances have shape {matrices.shape}, wanted [..., P, P]: one row a polarisation")
    if not np.isfinite(matrices).all():
        raise DataError("a covariance holds NaN or infinity, wanted finite sigma0: mask such pixels first")
    largest = abs(matrices).max(initial=0)
    skew = abs(matrices - matrices.swapaxes(-1, -2).conj()).max(initial=0)
    if skew > 1e-9 * largest:
        raise DataError(f"a covariance differs from its conjugate transpose by {skew:.3g}: average C and C^H first")
    smallest = np.linalg.eigvalsh(matrices).min(initial=np.inf)
    if not smallest > 1e-12 * largest:
        raise DataError(
            f"a covariance has the eigenvalue {smallest:.3g}, wanted all > 0: add a noise floor to its diagonal"
        )


def covariance_map(scene: Scene, date: int) -> np.ndarray:
    """[H, W, 4, 4] complex128, of every pixel of a scene; crop and grass mix with soil by `scene.bare`."""
    table = np.stack([covariance(*SCATTERING[name]) for name in MATERIALS])
    material = scene.material(date)
    share = np.where(np.isin(material, (CROP, GRASS)), scene.bare[date], 0)[..., None, None]
    return table[material] * (1 - share) + table[SOIL] * share


def single_look(matrices: np.ndarray, rng: np.random.Generator, texture: float | None = None) -> np.ndarray:
    """Single-look complex samples with the given covariances, independent of each other.

    Args:
        matrices: [..., P, P] covariances, linear sigma0.
        rng: of the speckle.
        texture: order nu > 0 of a Gamma texture of mean 1 and variance 1 / nu, common to all polarisations of a
            pixel (intensities are K-distributed); None for none.

    Returns:
        [..., P] complex128.

    Raises:
        DataError: see `check_covariance`; or `texture` is not > 0.
    """
    check_covariance(matrices)
    shape = matrices.shape[:-1]
    z = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)
    samples = np.einsum("...pq,...q->...p", np.linalg.cholesky(matrices), z)
    if texture is None:
        return samples
    if not texture > 0:
        raise DataError(f"texture = {texture}: wanted an order > 0, or None for none")
    return samples * np.sqrt(rng.gamma(texture, 1 / texture, shape[:-1]))[..., None]


def multilook(matrices: np.ndarray, looks: int, rng: np.random.Generator, texture: float | None = None) -> np.ndarray:
    """Mean of S S^H over independent looks: [..., P, P], complex Wishart where there is no texture.

    Args:
        matrices: [..., P, P] covariances.
        looks: whole number >= 1; see `intensity` for others.
        rng: of the speckle.
        texture: see `single_look`; every look draws its own.

    Raises:
        DataError: see `single_look`; or `looks` is no whole number >= 1.
    """
    if looks != int(looks) or looks < 1:
        raise DataError(f"looks = {looks}: wanted a whole number >= 1; `intensity` takes any other > 0")
    total = np.zeros(matrices.shape, np.complex128)
    for _ in range(int(looks)):
        samples = single_look(matrices, rng, texture)
        total += samples[..., :, None] * samples[..., None, :].conj()
    return total / looks


def intensity(power: np.ndarray, looks: float, rng: np.random.Generator) -> np.ndarray:
    """Intensities of L looks: Gamma with mean `power` and variance power^2 / L (Goodman).

    Channels are drawn independently of each other. For VV and VH of this module that is exact, for their
    covariance is 0; for HH and VV it is not: use `multilook`.

    Args:
        power: [...] sigma0, linear, >= 0.
        looks: equivalent number of looks L > 0, whole or not.
        rng: of the speckle.

    Raises:
        DataError: `looks` is not > 0, or a power is negative or not finite.
    """
    if not looks > 0:
        raise DataError(f"looks = {looks}: wanted a number > 0")
    power = np.asarray(power)
    if not (np.isfinite(power) & (power >= 0)).all():
        raise DataError(f"powers are {power.min():.3g} to {power.max():.3g}, wanted finite linear sigma0 >= 0, not dB")
    return power * rng.gamma(looks, 1 / looks, power.shape)


def observe(scene: Scene, sensor: Sensor, rng: np.random.Generator, texture: float | None = None) -> np.ndarray:
    """A SAR sensor's image, as it is stored: [T, h, w, C] in the sensor's dtype.

    Covariances are averaged over the sensor's cells. Complex sensors get single-look samples (re, im pairs), the
    others intensities of `sensor.looks` looks, as decibels, amplitudes or as they are, as the unit says.
    Bands are named after their polarisation; one that is not is taken as VV (our choice).

    Args:
        scene: the truth.
        sensor: with `looks`.
        rng: of the speckle.
        texture: see `single_look`; for complex sensors.

    Raises:
        DataError: the scene is no whole number of the sensor's pixels.
    """
    k = grid.cell(scene.size, scene.gsd, sensor)
    step = 2 if sensor.resampling == COMPLEX else 1
    names = [name.partition("_")[0] for name in sensor.band_names[::step]]
    index = [POLARISATIONS.index(name if name in POLARISATIONS else "VV") for name in names]
    images = []
    for t in range(scene.dates):
        matrices = grid.average(covariance_map(scene, t), k)[..., index, :][..., index]
        if sensor.resampling == COMPLEX:
            samples = single_look(matrices, rng, texture)
            images.append(np.stack([samples.real, samples.imag], -1).reshape(*samples.shape[:2], -1))
            continue
        seen = intensity(np.diagonal(matrices, axis1=-2, axis2=-1).real, sensor.looks, rng)
        if sensor.resampling == DECIBEL:
            seen = 10 * np.log10(seen)
        images.append(np.sqrt(seen) if sensor.unit.startswith("amplitude") else seen)
    return np.stack(images).astype(sensor.dtype)
