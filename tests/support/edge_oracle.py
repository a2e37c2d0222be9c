"""What a network gives in float64, and how far a float32 program may be from it.

Module by module with torch's own functions: nothing is shared with the exporter. A sum of n
products is within (n + 3) u of its magnitude, u = 2**-24, the third for weights that BatchNorm
changed and that were rounded again; what the inputs are off passes through the magnitudes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv import SparseConv1d
from sparseconv.models import DSN

UNIT, TINY = 2.0**-24, 2.0**-149
_PADS = {
    "zeros": "constant",
    "replicate": "replicate",
    "reflect": "reflect",
    "circular": "circular",
}


def modules(model: Any) -> list[nn.Module]:
    """The modules that run, in their order."""
    if isinstance(model, DSN):
        return modules(model.blocks) + modules(model.head)
    if isinstance(model, nn.Sequential):
        return [inner for module in model for inner in modules(module)]
    return [model]


@torch.no_grad()
def expected(model: nn.Module, X: Tensor) -> tuple[Tensor, Tensor]:
    """Scores in float64 and the bound of each."""
    x, off, terms = X.double(), torch.zeros_like(X, dtype=torch.float64), torch.ones(1)
    for module in modules(model):
        if isinstance(module, SparseConv1d | nn.Conv1d):
            if isinstance(module, SparseConv1d):
                weight, around = module.dense_weight().double(), module.resolved_padding
                terms = module.pattern.to_mask().sum((1, 2))
            else:
                module(torch.zeros(1, module.in_channels, 99))  # pruning computes the weight
                weight, around = module.weight.double(), _around(module)
                terms = torch.full((len(weight),), weight[0].numel())
            bias = torch.zeros(len(weight)) if module.bias is None else module.bias
            mode = _PADS[module.padding_mode]

            def sums(x: Tensor, w: Tensor, b: Tensor, m: Any = module, a: Any = around,
                     mode: str = mode) -> Tensor:  # fmt: skip
                padded = F.pad(x, a, mode=mode)
                return F.conv1d(padded, w, b.double(), m.stride, 0, m.dilation, m.groups)

            terms = terms.double()[:, None]
            size, none = weight.abs(), torch.zeros_like(bias)
            carried = sums(off, size, none)
            off = carried + (terms + 3) * (
                UNIT * (sums(x.abs(), size, bias.abs()) + carried) + TINY
            )
            x = sums(x, weight, bias)
        elif isinstance(module, nn.Linear):
            weight, bias = module.weight.double(), module.bias.double()
            size, terms = weight.abs(), torch.full((1,), weight.shape[1]).double()
            carried = off @ size.T
            magnitude = x.abs() @ size.T + bias.abs() + carried
            off = carried + (terms + 3) * (UNIT * magnitude + TINY)
            x = x @ weight.T + bias
        elif isinstance(module, nn.BatchNorm1d):
            shape = (-1, *[1] * (x.dim() - 2))
            scale = module.weight.double() * (module.running_var.double() + module.eps).rsqrt()
            shift = (module.running_mean.double() * scale).abs() + module.bias.double().abs()
            scale, shift = scale.view(shape), shift.view(shape)
            beta = module.bias.double().view(shape)
            mean = module.running_mean.double().view(shape)
            off = off * scale.abs() + (terms + 4) * UNIT * (shift + (x * scale).abs() + off)
            x = (x - mean) * scale + beta
        elif isinstance(module, nn.AdaptiveAvgPool1d):
            # In whatever order averages and 1x1 convolutions are computed.
            terms, pool = torch.full((1,), float(x.shape[-1] + 3)), module.output_size
            bins = pool if isinstance(pool, int) else pool[0]
            carried = F.adaptive_avg_pool1d(off, bins)
            magnitude = F.adaptive_avg_pool1d(x.abs(), bins) + carried
            off = carried + terms * (UNIT * magnitude + TINY)
            x = F.adaptive_avg_pool1d(x, bins)
        elif isinstance(module, nn.ReLU):
            x = x.clamp(min=0)
        elif isinstance(module, nn.LogSoftmax | nn.Softmax):
            x, off = _softmax(x, off, isinstance(module, nn.LogSoftmax))
        elif type(module) in (
            nn.ZeroPad1d,
            nn.ReplicationPad1d,
            nn.ReflectionPad1d,
            nn.CircularPad1d,
        ):
            x, off = module(x), module(off)
        elif isinstance(module, nn.Flatten):
            x, off, terms = x.flatten(1), off.flatten(1), terms.max()
    return x, off


def _around(conv: nn.Conv1d) -> tuple[int, int]:
    if conv.padding == "same":
        total = conv.dilation[0] * (conv.kernel_size[0] - 1)
        return total // 2, total - total // 2
    left = 0 if conv.padding == "valid" else int(conv.padding[0])
    return left, left


def _softmax(x: Tensor, off: Tensor, log: bool) -> tuple[Tensor, Tensor]:
    """log softmax moves at most by what its input and the largest of them do.

    Its rounding: the differences to the maximum, their exponentials (two units), the sum of them,
    its logarithm (two units), two subtractions.
    """
    exact = x.log_softmax(1)
    deep = (x.max(1, keepdim=True).values - x).amax(1, keepdim=True)
    sizes = deep + x.shape[1] + 8 + 6 * exact.abs().amax(1, keepdim=True) + 2 * deep
    moved = off + off.amax(1, keepdim=True) + 2 * UNIT * sizes
    return (
        (exact, moved) if log else (exact.exp(), exact.exp() * torch.expm1(moved + 9 * UNIT) + TINY)
    )
