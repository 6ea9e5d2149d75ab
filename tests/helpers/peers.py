"""Modules of other libraries at small sizes: what is asked of them, and weights and images that need nobody's code."""

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent.parent / "interop" / "golden"  # outputs, as `tests.interop.write_golden` stored them
TIMM = {  # name: class, its arguments, and the images that it is shown, [B, C, H, W]
    "swin_small": (
        "SwinTransformerV2",
        dict(img_size=32, patch_size=4, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4),
        (2, 3, 32, 32),
    ),
    "swin_deep": (
        "SwinTransformerV2",
        dict(img_size=64, patch_size=2, embed_dim=24, depths=(1, 2, 3, 2), num_heads=(1, 2, 4, 8), window_size=4),
        (1, 3, 64, 64),
    ),
    "vit_small": (
        "VisionTransformer",
        dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=5),
        (2, 3, 32, 32),
    ),
    "vit_resized": (  # positions are for 2 x 2 patches, the image has 3 x 4
        "VisionTransformer",
        dict(img_size=32, patch_size=16, embed_dim=128, depth=3, num_heads=2, num_classes=0, dynamic_img_size=True),
        (1, 3, 48, 64),
    ),
}
SKYSENSE = dict(  # released classes at a small size; the high-resolution image is 8 times as fine as the series
    high=dict(
        arch=dict(embed_dims=16, depths=[2, 7], num_heads=[2, 4], extra_norm_every_n_blocks=6),
        patch_size=4,
        window_size=6,
        out_indices=(1,),
    ),
    frame=dict(img_size=(16, 16), patch_size=4, embed_dims=64, num_layers=2, num_heads=1, mlp_ratio=4),
    fusion=dict(input_dims=32, embed_dims=64, num_layers=2, num_heads=1, mlp_ratio=4),
    sides=(12, 20),  # locations, rows and columns, which windows of 6 tokens do not tile
    thin=(6, 12),  # as high as one window
)


def weights(shapes, seed=0):
    """Random float32 tensors of a state dict, {name: array}; gains lie around 1."""
    tensors = {}
    for i, name in enumerate(sorted(shapes)):
        shape = tuple(shapes[name])
        drawn = np.random.default_rng([seed, i]).normal(size=shape) * 0.3
        if len(shape) > 1 and name.endswith("weight"):
            drawn *= 3 * np.prod(shape[1:]) ** -0.5
        gain = len(shape) == 1 and name.endswith("weight")
        tensors[name] = (drawn + gain).astype(np.float32)
    return tensors


def images(shape, seed=1):
    """Random float32 values, as after normalisation."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def golden(name):
    """Shapes of a peer's tensors and its outputs."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return json.loads(str(file["shapes"])), {key: file[key] for key in file.files if key != "shapes"}


def timm_outputs(name):
    """Shapes of timm's tensors, and its outputs channels last, by stage; "last" is after the last norm."""
    import timm.models
    import torch

    cls, arguments, shape = TIMM[name]
    model = getattr(timm.models, cls)(**arguments).eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes).items()})
    taken = {}
    for i, layer in enumerate(getattr(model, "layers", [])):
        layer.register_forward_hook(lambda module, inputs, output, i=i: taken.update({f"stage{i}": output.numpy()}))
    with torch.no_grad():
        last = model.forward_features(torch.from_numpy(images(shape))).numpy()
    if cls == "VisionTransformer":
        size = arguments["patch_size"]
        last = last[:, 1:].reshape(shape[0], shape[2] // size, shape[3] // size, -1)
    return shapes, taken | {"last": last}


def skysense_images():
    """Standardised images by sensor, [B, T, H, W, C]; days of the year of Sentinel-2's dates; and a thin image."""
    rng, (h, w) = np.random.default_rng(2), SKYSENSE["sides"]
    sizes = {"rgb": (2, 1, 8 * h, 8 * w, 3), "s2_10": (2, 3, h, w, 10), "s1_grd": (2, 2, h, w, 2)}
    drawn = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    rows, columns = SKYSENSE["thin"]
    thin = rng.normal(size=(1, 1, 8 * rows, 8 * columns, 3)).astype(np.float32)
    return drawn, rng.integers(0, 365, (2, 3)), thin


S2_GROUPS = ("S2_RGB", "S2_Red_Edge", "S2_NIR_10m", "S2_NIR_20m", "S2_SWIR", "NDVI")
GALILEO = {  # name: groups that are shown, side of a patch, whether the place is known
    "s2": (S2_GROUPS, 8, False),
    "both": (("S1", *S2_GROUPS), 4, False),
    "both_at_place": (("S1", *S2_GROUPS), 4, True),
    "rgb": (("S2_RGB",), 2, False),
}


def galileo_images():
    """Images in physical units, [B, T, H, W, C], with "months" and "days" since 1970 [B, T], and "location" [B, 2]."""
    rng = np.random.default_rng(3)
    return {
        "s2_10": rng.uniform(0.01, 0.5, (2, 2, 8, 8, 10)).astype(np.float32),
        "s1_grd": rng.normal(-14, 4, (2, 2, 8, 8, 2)).astype(np.float32),
        "months": np.array([[2, 6], [11, 0]]),
        "days": np.array([[18322, 18474], [18627, 18628]], np.int32),  # 1 March and 31 July; 31 December, 1 January
        "location": np.array([[48.0, 11.0], [-12.5, 130.0]], np.float32),
    }


PRESTO = {"s2": S2_GROUPS, "both": ("S1", *S2_GROUPS)}  # name: groups that are shown; the place always is
PRESTO_TABLES = ("pos_embed", "month_embed.weight")  # computed


def presto_images():
    """As `galileo_images`, of 2 x 2 pixels."""
    shown = galileo_images()
    return {name: value[:, :, :2, :2] if value.ndim == 5 else value for name, value in shown.items()}
