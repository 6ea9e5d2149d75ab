"""Writes tests/interop/golden: outputs of other libraries' modules on random weights, for tests without PyTorch.

    PYTHONPATH=. python -m tests.interop.write_golden timm
    PYTHONPATH=. python -m tests.interop.write_golden skysense <checkout of SkySense's code>
    PYTHONPATH=. python -m tests.interop.write_golden galileo <checkout of Galileo's code> <folder of its nano weights>
    PYTHONPATH=. python -m tests.interop.write_golden presto <checkout of Presto's code>

Needs requirements-torch.txt; SkySense's code mmcv 1.7.1, mmcls 0.25.0 and mmsegmentation 0.30.0, the
last two einops.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.helpers import peers


def store(name, shapes, outputs):
    """Writes one file, float32."""
    arrays = {key: np.asarray(value, np.float32) for key, value in outputs.items()}
    np.savez_compressed(peers.GOLDEN / f"{name}.npz", shapes=json.dumps(shapes), **arrays)
    print(name, {key: value.shape for key, value in arrays.items()})


def timm():
    for name in peers.TIMM:
        store(name, *peers.timm_outputs(name))


def skysense(folder):
    """Encoders, up-projections and fusion as the released code runs them, one date table for Sentinel-2."""
    import torch

    sys.path.insert(0, folder)
    from models.swin_transformer_v2 import SwinTransformerV2
    from models.transformer_encoder import TransformerEncoder
    from models.up_head import UPHead
    from models.vision_transformer import VisionTransformer

    config, (h, w), d = peers.SKYSENSE, peers.SKYSENSE["sides"], peers.SKYSENSE["fusion"]["input_dims"]
    frame = dict(config["frame"], out_indices=(1,), with_cls_token=True, interpolate_mode="bicubic", final_norm=False)
    width = frame["embed_dims"]
    modules = torch.nn.ModuleDict(
        {
            "backbone_gep": SwinTransformerV2(**config["high"]),
            "backbone_s2": VisionTransformer(in_channels=10, **frame),
            "backbone_s1": VisionTransformer(in_channels=2, **frame),
            "head_s2": UPHead(width, d, 4),
            "head_s1": UPHead(width, d, 4),
            "fusion": TransformerEncoder(**config["fusion"], with_cls_token=True, output_cls_token=True),
        }
    ).eval()
    modules.register_parameter("ctpe", torch.nn.Parameter(torch.zeros(1, 365, d)))
    shapes = {k: list(v.shape) for k, v in modules.state_dict().items() if "relative_" not in k}
    new = {k: torch.from_numpy(v) for k, v in peers.weights(shapes).items()}
    modules.load_state_dict(new, strict=False)
    shown, days, thin = peers.skysense_images()
    with torch.no_grad():
        feed = lambda x: torch.from_numpy(np.moveaxis(x, -1, 1).copy())  # noqa: E731
        (high,), (narrow,) = (modules["backbone_gep"](feed(x[:, 0])) for x in (shown["rgb"], thin))
        tokens, out = (
            [high[:, None]],
            {"rgb": high.permute(0, 2, 3, 1)[:, None], "thin": narrow.permute(0, 2, 3, 1)[:, None]},
        )
        for name, sensor in (("s2", "s2_10"), ("s1", "s1_grd")):
            pixels = shown[sensor]
            (x,) = modules[f"backbone_{name}"](feed(pixels.reshape(-1, *pixels.shape[2:])))
            x = modules[f"head_{name}"](x).reshape(len(pixels), -1, d, h, w)
            out[sensor] = x.permute(0, 1, 3, 4, 2)
            if sensor == "s2_10":
                x = x + modules.ctpe[0, torch.from_numpy(days)][..., None, None]
            tokens.append(x)
        sequence = torch.cat(tokens, 1).permute(0, 3, 4, 1, 2).reshape(-1, sum(t.shape[1] for t in tokens), d)
        out["fused"] = modules["fusion"](sequence).reshape(-1, h, w, config["fusion"]["embed_dims"])
    store("skysense", shapes, {key: value.numpy() for key, value in out.items()})


def galileo(folder, weights):
    """Nano with its published weights: every token of images of Sentinel-1 and -2."""
    import torch

    sys.path.insert(0, folder)
    from single_file_galileo import SPACE_TIME_BANDS_GROUPS_IDX, Encoder

    encoder = Encoder.load_from_folder(Path(weights), torch.device("cpu")).eval()
    table = json.loads((Path(folder) / "config" / "normalization.json").read_text())["13"]
    mean, std = (np.array(table[key][:12]) for key in ("mean", "std"))
    shown, names = peers.galileo_images(), list(SPACE_TIME_BANDS_GROUPS_IDX)
    s1, s2 = shown["s1_grd"].astype(np.float64), shown["s2_10"].astype(np.float64)
    values = (np.concatenate([s1, s2 * 1e4], -1) - (mean - 2 * std)) / (4 * std)
    index = (s2[..., 6] - s2[..., 2]) / (s2[..., 6] + s2[..., 2])
    x = torch.from_numpy(np.moveaxis(np.concatenate([values, index[..., None]], -1), 1, 3).astype(np.float32))
    b, side, _, t = x.shape[:4]
    latitude, longitude = np.deg2rad(shown["location"]).T
    place = [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
    outputs = {}
    for name, (groups, patch, located) in peers.GALILEO.items():
        mask, static, hidden = torch.ones(b, side, side, t, len(names)), torch.zeros(b, 18), torch.ones(b, 4)
        mask[..., [names.index(group) for group in groups]] = 0
        if located:
            static[:, 1:4], hidden[:, 1] = torch.from_numpy(np.stack(place, -1)), 0
        empty = (torch.zeros(b, side, side, 16), torch.zeros(b, t, 6), static)
        unseen = (torch.ones(b, side, side, 3), torch.ones(b, t, 3), hidden)
        with torch.no_grad():
            found = encoder(x, *empty, mask, *unseen, torch.from_numpy(shown["months"]), patch_size=patch)
        outputs[name] = found[0][..., [names.index(group) for group in groups], :].numpy()
    store("galileo", {}, outputs)


def presto(folder):
    """The mean token of every pixel, of its series of Sentinel-1 and -2."""
    import torch

    sys.path.insert(0, folder)
    from single_file_presto import BANDS_GROUPS_IDX, NUM_DYNAMIC_WORLD_CLASSES, Presto

    encoder = Presto.construct().encoder.eval()
    state = encoder.state_dict()
    shapes = {name: list(value.shape) for name, value in state.items() if name not in peers.PRESTO_TABLES}
    drawn = {name: torch.from_numpy(value) for name, value in peers.weights(shapes).items()}
    encoder.load_state_dict(state | drawn)
    shown = peers.presto_images()
    b, t, h, w, _ = shown["s2_10"].shape
    radar, optical = (shown["s1_grd"].astype(np.float64) + 25) / 25, shown["s2_10"].astype(np.float64)
    index = (optical[..., 6] - optical[..., 2]) / (optical[..., 6] + optical[..., 2])
    x = np.concatenate([radar, optical, np.zeros((b, t, h, w, 4)), index[..., None]], -1)
    series = lambda x: torch.from_numpy(np.moveaxis(x, 1, 3).reshape(b * h * w, t, -1).astype(np.float32))  # noqa: E731
    of_pixels = lambda x: torch.from_numpy(np.repeat(x, h * w, axis=0))  # noqa: E731
    outputs = {}
    for name, groups in peers.PRESTO.items():
        mask = torch.ones(b * h * w, t, 17)
        mask[..., [i for group in groups for i in BANDS_GROUPS_IDX[group]]] = 0
        land = torch.full((b * h * w, t), NUM_DYNAMIC_WORLD_CLASSES)
        with torch.no_grad():
            found = encoder(series(x), land, of_pixels(shown["location"]), mask, of_pixels(shown["months"]))
        outputs[name] = found.reshape(b, h, w, -1).numpy()
    store("presto", shapes, outputs)


if __name__ == "__main__":
    peers.GOLDEN.mkdir(exist_ok=True)
    {"timm": timm, "skysense": skysense, "galileo": galileo, "presto": presto}[sys.argv[1]](*sys.argv[2:])
