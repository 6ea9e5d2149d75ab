"""A small PyTorch twin of the RingMoE train step, as a peer to time against. It is no model to use.

The same geometry, experts, routing, losses and optimiser as the JAX model on the same batch; nothing is
dropped. Experts run by a loop over a list or by grouped products, see `torch_moe`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from experiments.benchmarks import torch_moe
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.contracts import cells_to_pixels
from ringmoe_jax.models.attention import relative_position_index, shift_mask
from ringmoe_jax.models.ringmoe import RingMoEConfig
from ringmoe_jax.sensors import Sensor


def job(
    config: RingMoEConfig,
    sensors: Mapping[str, Sensor],
    channels: Mapping[str, int],
    batch: Mapping,
    *,
    grouped: bool,
    compiled: bool = False,
) -> Callable[[], object]:
    """A whole train step on a batch that is already there.

    Args:
        config: geometry, float32.
        sensors: of the model.
        channels: decoder channels of each sensor.
        batch: of NumPy arrays, see `ringmoe_jax.contracts`.
        grouped: grouped products instead of a loop over experts.
        compiled: by `torch.compile`, where it otherwise runs eagerly; needs a C++ compiler.
    """
    torch.manual_seed(0)
    model = RingMoE(config, sensors, channels, grouped)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    images, hidden = {}, {}
    for name, entry in batch["sensors"].items():
        statistics = sensors[name].statistics
        pixels = (entry["pixels"][:, 0] - np.asarray(statistics.mean)) / np.asarray(statistics.std)
        images[name] = torch.tensor(pixels, dtype=torch.float32)
        hidden[name] = torch.tensor(np.asarray(cells_to_pixels(entry["mask"], *pixels.shape[1:3])))

    def step():
        optimizer.zero_grad(set_to_none=True)
        predicted, balance = forward(images, hidden)
        loss = 4e-3 * balance
        for name, y in predicted.items():
            error = (y - images[name][..., : y.shape[-1]]).abs().mean(-1)
            loss = loss + (error * hidden[name]).sum() / hidden[name].sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return loss.item()

    return step


class RingMoE(nn.Module):
    """Masked images [B, H, W, C] of every sensor to reconstructions of the same size, and the balance loss."""

    def __init__(self, config: RingMoEConfig, sensors, channels, grouped: bool):
        super().__init__()
        self.config, self.names = config, list(sensors)
        modalities = sensor_table.modalities(sensors)
        self.modality = {name: modalities.index(sensor.modality) for name, sensor in sensors.items()}
        p, width = config.patch, config.width
        self.stems = nn.ModuleDict(
            {n: nn.Sequential(nn.Linear(p * p * s.channels, width), nn.LayerNorm(width)) for n, s in sensors.items()}
        )
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.stages, self.merges = nn.ModuleList(), nn.ModuleList()
        for i, depth in enumerate(config.depths):
            if i:
                merge = nn.Sequential(nn.Linear(4 * width, 2 * width, bias=False), nn.LayerNorm(2 * width))
                self.merges.append(merge)
                width *= 2
            blocks = [Block(config, width, i, j % 2 == 1, len(modalities), grouped) for j in range(depth)]
            self.stages.append(nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(width)
        self.decoders = nn.ModuleDict({n: nn.Linear(width, config.stride**2 * c) for n, c in channels.items()})

    def forward(self, images, hidden):
        config, parts, modality = self.config, [], []
        for name in self.names:
            x = self.stems[name](patches(images[name], config.patch))
            masked = hidden[name][:, :: config.patch, :: config.patch, None]
            parts.append(torch.where(masked, self.mask_token, x))
            modality += [self.modality[name]] * len(x)
        x, modality, balance = torch.cat(parts), torch.tensor(modality), 0.0
        for i, stage in enumerate(self.stages):
            if i:
                x = self.merges[i - 1](patches(x, 2))
            for block in stage:
                x, loss = block(x, modality)
                balance = balance + loss / sum(config.depths)
        found, tokens = {}, self.norm(x).split([len(part) for part in parts])
        for name, y in zip(self.names, tokens, strict=True):
            b, h, w, s = *y.shape[:3], config.stride
            y = self.decoders[name](y).reshape(b, h, w, s, s, -1).transpose(2, 3)
            found[name] = y.reshape(b, h * s, w * s, -1)
        return found, balance


class Block(nn.Module):
    """Residual-post-norm Swin block with the mixture as feed-forward layer."""

    def __init__(self, config: RingMoEConfig, width: int, stage: int, odd: bool, modalities: int, grouped: bool):
        super().__init__()
        window, grid = config.pyramid.stage_window(stage), config.grid(stage)
        self.window, self.heads = window, width // min(config.head_width, config.width)
        self.shift = window // 2 if odd and grid > window else 0
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.position = nn.Parameter(torch.zeros((2 * window - 1) ** 2, self.heads))
        self.register_buffer("index", torch.tensor(relative_position_index(window)))
        if self.shift:
            self.register_buffer("neighbours", torch.tensor(shift_mask(grid, grid, window, self.shift)))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        hidden, moe = config.hidden_ratio * width, config.moe
        self.groups = nn.ModuleList()
        for allowed in moe.tables(modalities).values():
            self.groups.append(RouterGroup(width, hidden, torch.tensor(allowed), moe.top_k, grouped))
        self.shared = nn.ParameterList(expert_weights(width, hidden))

    def forward(self, x, modality):
        x = x + self.norms[0](self.attend(x))
        tokens = x.reshape(-1, x.shape[-1])
        of_token = modality.repeat_interleave(len(tokens) // len(modality))
        y, balance = torch_moe.expert(tokens, *parts(self.shared)), 0.0
        for group in self.groups:
            part, loss = group(tokens, of_token)
            y, balance = y + part, balance + loss
        return x + self.norms[1](y).reshape(x.shape), balance

    def attend(self, x):
        b, side, _, depth = x.shape
        m, n = self.window, side // self.window
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = x.reshape(b, n, m, n, m, depth).transpose(2, 3).reshape(b, n * n, m * m, depth)
        q, k, v = self.qkv(x).reshape(b, n * n, m * m, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        bias = self.position[self.index].permute(2, 0, 1)
        if self.shift:
            bias = bias + torch.where(self.neighbours[:, None], 0.0, -1e9)
        x = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = self.out(x.transpose(2, 3).reshape(b, n * n, m * m, depth))
        x = x.reshape(b, n, n, m, m, depth).transpose(2, 3).reshape(b, side, side, depth)
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x


class RouterGroup(nn.Module):
    """One router and its experts on tokens [N, D]."""

    def __init__(self, width: int, hidden: int, allowed, top_k: int, grouped: bool):
        super().__init__()
        self.top_k, self.grouped = top_k, grouped
        self.register_buffer("allowed", allowed)
        self.router = nn.Parameter(0.02 * torch.randn(width, allowed.shape[1]))
        experts = [expert_weights(width, hidden) for _ in range(allowed.shape[1])]
        if grouped:
            self.experts = nn.ParameterList(nn.Parameter(torch.stack(w)) for w in zip(*experts, strict=True))
        else:
            self.experts = nn.ModuleList(nn.ParameterList(w) for w in experts)

    def forward(self, x, modality):
        logits = (x @ self.router).masked_fill(~self.allowed[modality], -torch.inf)
        probabilities = torch.softmax(logits, -1)
        gates, chosen = probabilities.topk(self.top_k, -1)
        if self.grouped:
            y = torch_moe.grouped(x, gates, chosen, *parts(self.experts))
        else:
            y = torch_moe.loop(x, gates, chosen, self.experts)
        load = torch.bincount(chosen.reshape(-1), minlength=self.allowed.shape[1]) / chosen.numel()
        return y, self.allowed.shape[1] * (load * probabilities.mean(0)).sum()


def expert_weights(width: int, hidden: int) -> list[nn.Parameter]:
    """Fresh wi [D, F], bi [F], wo [F, D], bo [D]."""
    shapes = (width, hidden), (hidden,), (hidden, width), (width,)
    return [nn.Parameter(0.02 * torch.randn(*s) if len(s) == 2 else torch.zeros(*s)) for s in shapes]


def parts(weights: nn.ParameterList) -> list[nn.Parameter]:
    """Its entries; `torch.compile` cannot unpack a list of parameters."""
    return [weights[i] for i in range(len(weights))]


def patches(x, size: int):
    """[B, H, W, C] -> [B, H / size, W / size, size^2 C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(2, 3)
    return x.reshape(b, h // size, w // size, size * size * c)
