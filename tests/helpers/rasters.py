"""GeoTIFFs as a user would have them."""

import rasterio
from affine import Affine


def tif(path, pixels, pixel=10.0, names=(), corner=(500_000, 5_000_000), **options):
    """Writes [H, W, C] as a GeoTIFF in UTM 33N, unless `options` of rasterio say another place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = pixels.shape
    transform = Affine(pixel, 0, corner[0], 0, -pixel, corner[1])
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype}
    profile |= {"crs": "EPSG:32633", "transform": transform} | options
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels.transpose(2, 0, 1))
        for i, name in enumerate(names):
            file.set_band_description(i + 1, name)
