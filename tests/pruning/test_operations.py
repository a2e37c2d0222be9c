"""Operations between two layers: ``sc.prune_filters`` follows them, or keeps what they read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import Function
from pruning_networks import data, masked
from torch import Tensor, nn

import sparseconv as sc
from sparseconv.pruning import Magnitude

X, _ = data(4)
Operation = Callable[..., Any]


class Parametrized(nn.Module):
    """A function of a tensor and of a parameter."""

    def __init__(self, function: Operation, *shape: int) -> None:
        super().__init__()
        self.function, self.parameter = function, nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.parameter)


class Last(nn.Module):
    """A module that wants the channels last."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y = self.module(x.transpose(1, 2))
        return (y[0] if isinstance(y, tuple) else y).transpose(1, 2)


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x)[0]


def written(x: Tensor, index: Any, value: Any) -> Tensor:
    y = x.clone()
    y[index] = value(y) if callable(value) else value
    return y


def named(module: Any, names: str, *args: Any, **kwargs: Any) -> dict[str, Operation]:
    return {
        name: lambda x, name=name: getattr(module, name)(x, *args, **kwargs)
        for name in names.split()
    }


FOLLOWED: dict[str, dict[str, Operation]] = {
    "elementwise": {  # of others no rule knows more than of these
        **named(torch, "abs acosh ceil exp isfinite logical_not ones_like clone detach relu_"),
        **named(F, "gelu hardswish leaky_relu softplus"),
    },
    "random": {
        **named(torch, "bernoulli rand_like randn_like"),
        "gumbel": partial(F.gumbel_softmax, dim=2), "rrelu": lambda x: F.rrelu(
            x - 0.6, training=True),
        "noise": lambda x: x + torch.randn(x.shape),
        "mask": lambda x: x * torch.rand(4, 1, 12).round(),
        "rsample": lambda x: torch.distributions.Normal(x, x.exp()).rsample(),
        "in place": lambda x: x * torch.empty_like(x).uniform_(),
    },
    "two of a kind": {
        "maximum": lambda x: torch.maximum(x, x.mean(2, keepdim=True)),
        "where": lambda x: torch.where(x > 0.5, x, torch.zeros(()).double()),
        "lerp": lambda x: torch.lerp(x, x.sin(), 0.3),
        "masked_fill": lambda x: x.masked_fill(x < 0.5, 0.0),
        "masked_fill of samples": lambda x: x.masked_fill(torch.arange(12) > 5, 0.0),
        "addcdiv": lambda x: torch.addcdiv(x, x, x + 3), "compare": lambda x: (x > 0.5) ^ (x > 0.7),
        "pow": lambda x: 2 ** x + x ** 2, "clamp": lambda x: x.clamp(0.2, 0.8),
        "gate": lambda x: x * torch.arange(12), "zeros": lambda x: x + torch.zeros(x.shape),
        "einsum": lambda x: torch.einsum("ncl,nc->ncl", x, x.mean(2)),
        "attention over time": lambda x: x @ (torch.arange(144.0).view(12, 12).double()).softmax(0),
        "product over time": nn.Linear(12, 5), "new": lambda x: x + x.new_ones(1),
        "mask like it": lambda x: x * (torch.arange(12).expand_as(x) < 5),
        "table like it": lambda x: x + torch.arange(12).sin().type_as(x).to(x).expand_as(x),
        "noise like it": lambda x: x + torch.ones(x.numel()).view_as(x),
    },
    "parameters": {
        **{f"of {shape}": Parametrized(torch.mul, *shape)
           for shape in [(8, 1), (1, 8, 1), (1, 8, 12), (8, 12), (12,), (), (1,)]},
        "in front": Parametrized(lambda x, p: p + x, 8, 1),
        "viewed": Parametrized(lambda x, p: x * p.view(1, -1, 1), 8),
        "indexed": Parametrized(lambda x, p: x * p[None, :, None].exp(), 8),
        "last": Last(Parametrized(torch.mul, 8)), "prelu": nn.PReLU(8), "one slope": nn.PReLU(),
        "snake": Parametrized(lambda x, p: x + (p * x).sin() ** 2 / p, 1, 8, 1),
    },
    "over time": {
        **named(torch, "mean std median argmax norm", dim=2),
        **named(torch, "max var_mean softmax cumsum sort", 2),
        "topk": lambda x: x.topk(3, 2), "quantile": lambda x: x.quantile(0.3, 2),
        "aminmax": lambda x: torch.aminmax(x, dim=2), "diff": torch.diff, "rfft": torch.fft.rfft,
        "irfft": lambda x: torch.fft.irfft(torch.fft.rfft(x)), "softmin": partial(F.softmin, dim=2),
        "count": lambda x: torch.count_nonzero(x > 0.5, dim=2), "roll": lambda x: x.roll(1, 2),
        "gather": lambda x: x.gather(2, x.argsort(2)), "select": lambda x: x[:, :, -1],
        "index_select": lambda x: x.index_select(2, torch.tensor([0, 3])),
        "slice": lambda x: x[:, :, 1:-1],
        "pieces": lambda x: x.unfold(2, 3, 1), "unbind": lambda x: x.unbind(2)[3],
    },
    "moved": {
        "transpose": lambda x: x.transpose(1, 2).contiguous().mT, "permute": lambda x: x.permute(
            2, 0, 1).movedim(0, 2), "in place": lambda x: x.clone().unsqueeze_(2).squeeze_(2),
        "flatten": lambda x: x.flatten(1), "repeat": lambda x: x.repeat(1, 2, 3),
        "expand": lambda x: x.mean(2, keepdim=True).expand(-1, -1, 12), "flip": lambda x: x.flip(1),
        "tile": lambda x: torch.tile(x, (1, 1, 2)), "unflatten": lambda x: x.unflatten(2, (3, 4)),
        "repeat_interleave": lambda x: x.repeat_interleave(2, 1), "chunk": lambda x: torch.cat(
            x.chunk(4, 1)[::-1], 1), "split": lambda x: x.split(x.shape[1] // 2, 1)[1],
        "halves": lambda x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :],
        "glu": partial(F.glu, dim=1), "glu over time": F.glu, "stack": lambda x: torch.stack(
            [x, -x], -1), "cat": lambda x: torch.cat([x, -x], 1), "cat with others": lambda x:
        torch.cat([x, torch.ones(4, 2, 12)], 1), "cat in time": lambda x: torch.cat(
            [torch.zeros(*x.shape[:2], 2), x, x.mean(2, keepdim=True)], 2),
        "shuffle": lambda x: x.view(4, 2, x.shape[1] // 2, -1).transpose(1, 2).reshape(x.shape),
        "like another": lambda x: x * x.mean(2, keepdim=True).expand_as(x), "cat with nothing":
        lambda x: torch.cat([torch.tensor([]), x], 1), "windows": lambda x: x[
            :, :, torch.arange(6).view(2, 3)],
        "one by one": lambda x: torch.stack([y.sin() for y in x.unbind(0)]),
    },
    "layers": {
        "batch_norm": nn.BatchNorm1d(8), "without affine": nn.BatchNorm1d(8, affine=False),
        "instance_norm": nn.InstanceNorm1d(8, affine=True, track_running_stats=True),
        "plain instance_norm": nn.InstanceNorm1d(8), "group_norm": nn.GroupNorm(4, 8),
        "layer_norm over time": nn.LayerNorm(12), "normalize": partial(F.normalize, dim=2),
        "max_pool": nn.MaxPool1d(2), "avg_pool": nn.AvgPool1d(2), "lp_pool": nn.LPPool1d(2, 2),
        "unpool": lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2),
        "adaptive": nn.AdaptiveMaxPool1d(5), "upsample": nn.Upsample(scale_factor=2),
        "linear": lambda x: F.interpolate(x, size=20, mode="linear"), "zeros": nn.ZeroPad1d(2),
        "constant": nn.ConstantPad1d(2, 1.0), "reflect": nn.ReflectionPad1d(2),
        "circular": nn.CircularPad1d(1), "around channels": lambda x: F.pad(x, (0, 0, 2, 1)),
        "transposed": nn.ConvTranspose1d(8, 6, 2, 2),
        "transposed depthwise": nn.ConvTranspose1d(8, 8, 2, 2, groups=8),
    },
}  # fmt: skip

KEPT: dict[str, tuple[Operation, str]] = {
    **{name: (operation, f"'{name}' in operations.") for name, operation in {
        **named(torch, "mean softmax sort", dim=1),
        **named(torch, "roll", 1, 1), "any": lambda x: x * (x > 0).any(),
        "matmul": lambda x: x.transpose(1, 2) @ x, "bmm": lambda x: torch.bmm(x, x.mT),
        "einsum": Parametrized(lambda x, p: torch.einsum("ncl,cd->ndl", x, p), 8, 8),
        "mul": lambda x: x * torch.arange(8.0)[:, None], "normalize": F.normalize,
        "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(*[x.mT] * 3).mT,
        "multi_head_attention_forward": Last(SelfAttention(8, 2, batch_first=True)), "lstm": Last(
            nn.LSTM(8, 8, batch_first=True)),
        "layer_norm": Last(nn.LayerNorm(8)), "local_response_norm": nn.LocalResponseNorm(
            3, 1e-9),
        "avg_pool1d": Last(nn.AvgPool1d(3, 1, 1)), "conv2d": nn.Sequential(
            nn.Unflatten(2, (12, 1)), nn.Conv2d(8, 5, (3, 1))), "linear": Last(
            Parametrized(F.linear, 5, 8)), "fft_fft": lambda x: torch.fft.fft(x, dim=1),
        "getitem": lambda x: x * x[x > 0].sum(), "unbind": lambda x: x.unbind(1)[0],
        "setitem": lambda x: written(x, (slice(None), 0), 0), "numpy": lambda x: torch.from_numpy(
            2 * x.detach().numpy()), "max": lambda x: x * x.max().item(), "nonzero": lambda x:
        x * len(x.nonzero()), "split": lambda x: x.split([3, 5], 1)[0], "copy": lambda x:
        torch.empty(4, 8, 12).copy_(x), "group_norm": lambda x: F.group_norm(x, 4),
    }.items()},
    "hard view": (lambda x: x.view(4, 96), "does not run (RuntimeError: shape '[4, 96]' is"),
    "hard slice": (lambda x: x[:, 5:], "without some of its filters, "),
    "hard split": (lambda x: torch.cat(x.split(4, 1)[1:], 1), "filters, the model does not run ("),
    "width": (lambda x: x / x.shape[1], "the model computes different outputs: the code relies"),
    "one group": (nn.GroupNorm(1, 8), "it normalizes over all channels"),
    "groups": (nn.ConvTranspose1d(8, 8, 2, groups=2), "it is a grouped transposed convolution"),
    "unbatched": (nn.Sequential(Function(lambda x: x[0]), nn.Conv1d(8, 8, 1), Function(
        lambda x: x.expand(4, 8, 12))), "its number of input or output channels differs"),
}  # fmt: skip


class Probes(nn.Module):
    """Each operation between its own two convolutions; what comes out is added."""

    def __init__(self, operations: dict[str, Operation]) -> None:
        super().__init__()
        self.operations = nn.ModuleList(
            f if isinstance(f, nn.Module) else Function(f) for f in operations.values()
        )
        self.first = nn.ModuleList(nn.Conv1d(2, 8, 3, padding=1) for _ in operations)
        self.last = nn.ModuleList(nn.LazyConv1d(3, 1) for _ in operations)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(())
        for first, operation, last in zip(self.first, self.operations, self.last, strict=True):
            y = operation(first(x).sigmoid())
            y = y[0] if isinstance(y, tuple) else y
            y = (y.abs() if y.is_complex() else y).double().nan_to_num()  # or masks would not hide
            total = total + last(y.flatten(2) if y.dim() > 2 else y[:, :, None]).sum(2)
        return total


def pruned(operations: dict[str, Operation], x: Tensor = X) -> tuple[dict[str, int], list[str]]:
    """Return how many of 8 filters are left before each operation, and why there are not fewer."""
    torch.manual_seed(0)
    model = Probes(operations).double().eval()
    with torch.no_grad():
        model(X)  # makes the last layers
    small, report = sc.prune_filters(model, x, Magnitude(), fraction=0.5)
    if operations is not FOLLOWED["random"]:  # fewer draws are others
        torch.testing.assert_close(small(X), masked(model, report)(X))
    assert report.parameters.after == sum(p.numel() for p in small.parameters())
    left = {layer.name: layer.filters.after for layer in report.layers}
    numbers = {name: left[f"first.{i}"] for i, name in enumerate(operations)}
    return numbers, [report.left.get(f"first.{i}", "") for i in range(len(operations))]


@pytest.mark.parametrize("group", FOLLOWED)
def test_followed(group: str) -> None:
    assert pruned(FOLLOWED[group])[0] == dict.fromkeys(FOLLOWED[group], 4)


def test_kept() -> None:
    operations = {name: operation for name, (operation, _) in KEPT.items()}
    zeros = torch.zeros_like(X)  # which show no difference between channels
    left, reasons = pruned(operations | {"nothing": nn.Identity()}, zeros)
    assert left == dict.fromkeys(KEPT, 8) | {"nothing": 4}
    for (_, fragment), reason in zip(KEPT.values(), reasons, strict=False):
        assert fragment in reason
