"""PyTorch's ways to run the same layer on the same arrays: a loop over a list of experts, and `grouped_mm`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

DENSE = "torch dense layer"


def jobs(point, inputs) -> dict[str, Callable[[], object]]:
    """Forward and backward passes of a `moe.Point` on `moe.Inputs`."""
    dtype = getattr(torch, point.dtype)
    leaf = lambda a: torch.tensor(a).requires_grad_()  # noqa: E731
    x, router = torch.tensor(inputs.x).to(dtype).requires_grad_(), leaf(inputs.router)
    upstream, scores = torch.tensor(inputs.upstream).to(dtype), torch.tensor(inputs.scores)
    stacked = [leaf(w) for w in inputs.experts]
    listed = [[leaf(w) for w in weights] for weights in zip(*inputs.experts, strict=True)]
    rows, above = x.detach().repeat(point.top_k, 1).requires_grad_(), upstream.repeat(point.top_k, 1)

    def differentiated(function, gradient, leaves):
        return lambda: torch.autograd.grad(function(), leaves, gradient)

    routed = lambda: route(x, router, scores, point.top_k)  # noqa: E731
    found = {DENSE: differentiated(lambda: expert(rows, *listed[0]), above, [rows, *listed[0]])}
    leaves = [x, router, *(w for weights in listed for w in weights)]
    found["torch loop"] = differentiated(lambda: loop(x, *routed(), listed), upstream, leaves)
    if hasattr(torch, "_grouped_mm"):
        grouped_leaves = [x, router, *stacked]
        found["torch grouped_mm"] = differentiated(lambda: grouped(x, *routed(), *stacked), upstream, grouped_leaves)
    return found


def expert(x, wi, bi, wo, bo):
    """[R, D] -> [R, D]; weights are float32, cast to the dtype of x."""
    wi, bi, wo, bo = (w.to(x.dtype) for w in (wi, bi, wo, bo))
    return F.gelu(x @ wi + bi, approximate="tanh") @ wo + bo


def route(x, router, scores, k: int):
    """Gates [N, K] in the dtype of x, and experts [N, K]."""
    gates, chosen = torch.softmax(x.float() @ router + scores, -1).topk(k, -1)
    return gates.to(x.dtype), chosen


def loop(x, gates, chosen, experts):
    """One expert after the other, each on its tokens; weights in a list, since indexing a stacked tensor makes
    the gradient quadratic in the number of experts."""
    outputs = torch.zeros_like(x)
    for e, weights in enumerate(experts):
        token, k = torch.where(chosen == e)
        outputs = outputs.index_add(0, token, expert(x.index_select(0, token), *weights) * gates[token, k][:, None])
    return outputs


def grouped(x, gates, chosen, wi, bi, wo, bo):
    """Tokens sorted by expert, two grouped products."""
    wi, bi, wo, bo = (w.to(x.dtype) for w in (wi, bi, wo, bo))
    flat = chosen.reshape(-1)
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=wi.shape[0])
    ends, owner = sizes.cumsum(0).to(torch.int32), flat[order]
    rows = x.index_select(0, order // chosen.shape[1])
    hidden = F.gelu(torch._grouped_mm(rows, wi, offs=ends) + bi[owner], approximate="tanh")
    y = (torch._grouped_mm(hidden, wo, offs=ends) + bo[owner]) * gates.reshape(-1)[order][:, None]
    return torch.zeros_like(x).index_add(0, order // chosen.shape[1], y)
