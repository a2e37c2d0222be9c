"""What tests of inference look at: what a model is, and how far rounding may move its output."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from sparseconv import SparseConv1d, optimize_for_inference

HALF = (torch.bfloat16, torch.float16)


def operations(model: nn.Module, *inputs: Tensor) -> Counter[str]:
    """How often which of torch's operations runs in ``model(*inputs)``, as the profiler saw it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it writes to stderr
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        model(*inputs)
    return Counter(event.name for event in profiler.events())


def norms(model: nn.Module, *inputs: Tensor) -> int:
    """How many BatchNorm1d were called: those that were not folded."""
    with mock.patch.object(F, "batch_norm", wraps=F.batch_norm) as called:
        model(*inputs)
    return called.call_count


def outcome(model: nn.Module, *inputs: Tensor) -> Any:
    """What a model gives, or says."""
    try:
        return model(*inputs).tolist()
    except Exception as error:
        return type(error), str(error)


def conv(**options: Any) -> SparseConv1d:
    return SparseConv1d(4, 4, 3, **{"padding": 1, "density": 0.5, **options})


def body(kind: type[nn.Sequential] = nn.Sequential, inputs: int = 4, outputs: int = 9) -> Any:
    conv = SparseConv1d(inputs, outputs, 5, padding=2, bias=False)
    return kind(conv, nn.BatchNorm1d(outputs), nn.ReLU())


def flat(kind: type[nn.Sequential] = nn.Sequential, bias: bool = True) -> nn.Sequential:
    return kind(*body(), nn.Conv1d(9, 4, 1, bias=bias), *body())


def bordering(kind: type[nn.Sequential] = nn.Sequential, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(body(kind), kind(nn.Conv1d(9, 4, 1, bias=bias), *body()))


def original_and_copy(make: Callable[[], nn.Module]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = settled(make())
    return model, optimize_for_inference(model)


def settled(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and weights as training leaves them."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            if norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.1, 3)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return model.eval()


# What rounding may do, counted along the network.


def weight_of(conv: nn.Module) -> Tensor:
    weight = conv.dense_weight() if isinstance(conv, SparseConv1d) else conv.weight
    return weight.detach().double()


def correlate(conv: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    pads = (conv.resolved_padding if isinstance(conv, SparseConv1d)
            else tuple(conv._reversed_padding_repeated_twice))  # fmt: skip
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, pads, mode)
    return F.conv1d(x, weight, None, conv.stride, 0, conv.dilation, conv.groups)


def with_bounds(layers: list[nn.Module], x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The layers' output in float64, and how far from it the folded layers may be.

    A sum of n products rounds by (n + 2) u times the sum of magnitudes; a folded weight was rounded
    once; an error of the input passes through the magnitudes of the weights.
    """
    unit = torch.finfo(torch.float32 if dtype in HALF else dtype).eps / 2
    stored = torch.finfo(dtype).eps / 2 if dtype in HALF else unit
    spacing = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2
    exact, error = x.double(), torch.zeros_like(x, dtype=torch.float64)
    for i, layer in enumerate(layers):
        if isinstance(layer, SparseConv1d | nn.Conv1d):
            norm = layers[i + 1] if i + 1 < len(layers) else None
            scale, shift = torch.ones(layer.out_channels, dtype=torch.float64), 0
            loose = torch.zeros_like(scale)  # magnitudes that make the bias
            if isinstance(norm, nn.BatchNorm1d):
                scale = (norm.running_var.double() + norm.eps).rsqrt()
                scale = scale * (norm.weight.detach().double() if norm.affine else 1)
                beta = norm.bias.detach().double() if norm.affine else torch.zeros_like(scale)
                shift = beta - norm.running_mean.double() * scale
                loose = beta.abs() + (norm.running_mean.double() * scale).abs()
            if layer.bias is not None:
                shift = shift + layer.bias.detach().double() * scale
                loose = loose + (layer.bias.detach().double() * scale).abs()
            weight = weight_of(layer) * scale[:, None, None]
            size = correlate(layer, exact.abs() + error, weight.abs()) + loose[:, None]
            ones = correlate(layer, torch.ones_like(exact), (weight != 0).double())
            passed = correlate(layer, error, weight.abs())
            exact = correlate(layer, exact, weight)
            exact = exact + (shift[:, None] if isinstance(shift, Tensor) else shift)
            error = passed + ((ones + 3) * unit + stored) * size * (1 + 2 * stored)
            error = error + spacing * (ones + 1) * (1 + exact.abs())
            if dtype in HALF:
                error = error + stored * (exact.abs() + error) + spacing
        elif isinstance(layer, nn.ReLU):
            exact = exact.relu()  # moves no two values apart
        elif isinstance(layer, nn.AdaptiveAvgPool1d):
            terms = exact.shape[-1] + 2
            size = F.adaptive_avg_pool1d(exact.abs() + error, layer.output_size)
            error = F.adaptive_avg_pool1d(error, layer.output_size) + terms * unit * size
            exact = F.adaptive_avg_pool1d(exact, layer.output_size)
        elif isinstance(layer, nn.Flatten):
            exact, error = exact.flatten(1), error.flatten(1)
        else:
            assert isinstance(layer, nn.BatchNorm1d)  # counted with the layer before
    return exact, (2 if dtype == torch.float64 else 1) * error  # float64 itself rounds as well
