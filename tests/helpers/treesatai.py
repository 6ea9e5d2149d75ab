"""TreeSatAI-Time-Series as distributed, small."""

import h5py
import numpy as np
import rasterio
from affine import Affine

DES, ASC = ("20200106", "20200118"), ("20200103", "20200109", "20200124")

S2 = ("20200102", "20200105", "20200110", "20220131")


def s1_name(date, clock="170841"):
    return f"S1A_IW_GRDH_1SDV_{date}T{clock}_{date}T{clock}_030639_0382D5_360A"


def s2_name(date, baseline="N0213"):
    return f"S2A_MSIL2A_{date}T102421_{baseline}_R065_T32UNC_{date}T115419"


def write_series(path, **changes):
    """Band c of Sentinel-2 holds 1000 (c + 1) + row; VV of the k-th date of a pass 10^-k, VH a tenth of it."""
    data = np.broadcast_to(1000 * np.arange(1, 11)[None, :, None, None], (4, 10, 6, 6)) + np.arange(6)[:, None]
    masks = np.zeros((4, 10, 6, 6))
    masks[1, 1, 0, 0] = 60  # one cloudy pixel
    masks[1, 0, 0, 1] = 11  # one with snow
    masks[2, 1] = 90  # all cloudy
    content = {
        "sen-2-data": data.astype(np.float32),
        "sen-2-masks": masks.astype(np.float32),
        "sen-2-products": [*map(s2_name, S2[:3]), s2_name(S2[3], "N0400")],
    }
    for name, dates in (("asc", ASC), ("des", DES)):
        power = 10.0 ** -np.arange(1, len(dates) + 1)[:, None, None, None] * np.array([1, 0.1])[:, None, None]
        content[f"sen-1-{name}-data"] = np.broadcast_to(power, (len(dates), 2, 6, 6)).astype(np.float32).copy()
        content[f"sen-1-{name}-products"] = [s1_name(date) for date in dates]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, value in (content | changes).items():
            file[key] = value


def write_aerial(path, channels=4):
    """Near infrared 4, green 2, blue 3, red 1, but columns 0 and 1 are 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.broadcast_to(np.array([4, 2, 3, 1][:channels], np.uint8)[:, None, None], (channels, 304, 304)).copy()
    pixels[:, :, :2] = 0
    transform = Affine(0.2, 0, 565_642.6, 0, -0.2, 5_770_980.4)
    profile = {"driver": "GTiff", "height": 304, "width": 304, "count": channels, "dtype": "uint8"}
    with rasterio.open(path, "w", crs="EPSG:32632", transform=transform, **profile) as file:
        file.write(pixels)
        file.colorinterp = [rasterio.enums.ColorInterp(i) for i in (3, 4, 5, 6)[:channels]]
