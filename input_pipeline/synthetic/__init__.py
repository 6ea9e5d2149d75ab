"""A simulator with known truth: a toy landscape and what every sensor would see of it. Never real data.

It exists to test objectives and heads against a truth that nobody has for real images: land cover,
heights, objects and their tracks, changes, reflectances, covariances and noise are all known.
Only `dataset.prepare` needs TensorFlow.

scene.py      draws the truth: land cover, heights, objects that move, changes between dates
grid.py       pixels, cells of a coarser grid, rectangles
spectra.py    what optical and multispectral sensors see: reflectance, sun, point-spread function, noise
radar.py      what SAR sees: polarimetric covariance, speckle, looks
dataset.py    all sensors of a scene; a data set with labels
preview.py    pictures of a scene
"""

from input_pipeline.synthetic.dataset import prepare, simulate
from input_pipeline.synthetic.scene import Scene, Track, draw

__all__ = ["Scene", "Track", "draw", "prepare", "simulate"]
