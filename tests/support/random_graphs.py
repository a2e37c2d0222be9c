"""Random networks of layers and functions around sparse convolutions, as graphs of any form."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from layers import Function
from torch import Tensor, nn

import sparseconv as sc

FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.tanh, torch.sigmoid, F.gelu, F.silu, F.softplus, torch.abs, F.hardswish,
    lambda x: F.leaky_relu(x, 0.1), lambda x: 0.5 * x, lambda x: x + 0.25, lambda x: x.neg(),
    lambda x: F.elu(x, inplace=True), lambda x: x.mul_(2), lambda x: x.detach() + x,
    lambda x: x.flip(2), lambda x: F.pad(x, (1, -1)), lambda x: x.roll(1, 0),
)  # fmt: skip
KINDS = (
    *("sparse",) * 4, "dense", "strided", "1x1", "norm", "norm", "relu", "relu_", "function",
    "pool", "shrink", "add", "cat", "mul", "drop", "padded", "cropped", "prelu", "split", "part",
    "transposed", "chunk", "valid", "ends", "longer", "upsampled", "glu",
)  # fmt: skip
SHRINKS = (
    nn.MaxPool1d(2), nn.AvgPool1d(2), nn.MaxPool1d(3, 2, 1), nn.MaxPool1d(2, ceil_mode=True),
    nn.AdaptiveAvgPool1d(7), nn.AdaptiveMaxPool1d(5), nn.AvgPool1d(3, 1, 1),
    nn.MaxPool1d(3, 1, dilation=2), nn.MaxPool1d(7, 1, 1), nn.AdaptiveAvgPool1d(1),
)  # fmt: skip


class RandomGraph(nn.Module):
    """Up to 14 operations, each on one to three earlier results; the sum of all unread results.

    The numbers of channels are multiples of ``unit``, whose blocks share their taps.
    ``repr(graph)`` names its layers, and ``RandomGraph(seed)`` is the same graph again.
    """

    def __init__(self, seed: int, unit: int = 1) -> None:
        super().__init__()
        rng, self.unit = random.Random(seed), unit
        torch.manual_seed(seed)
        self.batch, self.length = rng.choice((1, 2, 3, 5, 16, 20, 33)), rng.randint(9, 70)
        self.in_channels = unit * rng.randint(1, 4)
        self.layers = nn.ModuleList()
        self.program: list[tuple[str, tuple[int, ...]]] = []  # kinds, and what they read
        widths = [(self.in_channels, self.length)]
        for _ in range(rng.randint(4, 14)):
            widths.append(self.add_operation(rng, widths))

    def add_operation(self, rng: random.Random, widths: list[tuple[int, int]]) -> tuple[int, int]:
        """Draw one that reads results of these channels and samples; return those of its result."""
        unit, most = self.unit, 9 if self.unit == 1 else 4
        x = rng.randrange(max(0, len(widths) - 3), len(widths))
        channels, length = outputs, samples = widths[x]
        kind = rng.choice(KINDS)
        same = [i for i, width in enumerate(widths) if width == widths[x]]
        equal = [i for i, width in enumerate(widths) if width[1] == length]
        reads: tuple[int, ...] = (x,)
        layer: nn.Module
        if kind == "valid" and length > 30:
            outputs, dilation = unit * rng.randint(2, most), rng.choice((1, 3))
            padding = rng.choice((0, 0, 1))
            layer = sc.SparseConv1d(
                channels, outputs, 4, padding=padding, dilation=dilation, density=0.4, block=unit
            )
            samples += 2 * padding - 3 * dilation
        elif kind in ("ends", "longer") and length > 12:
            left, right = rng.choice(((0, 2), (3, 0), (5, 0), (1, 4)))
            if kind == "longer":
                layer = Function(lambda x: F.pad(x, (left, right)))
                samples += left + right
            else:
                layer = Function(lambda x: x[..., left : x.shape[2] - right])
                samples -= left + right
        elif kind == "upsampled" and length < 80:
            factor = rng.choice((2, 3))
            layer = nn.Upsample(scale_factor=factor)
            samples *= factor
        elif kind == "glu" and channels % 2 == 0 and unit == 1:
            layer = nn.GLU(1)
            outputs //= 2
        elif kind in ("sparse", "strided", "padded", "cropped"):
            outputs, taps = unit * rng.randint(2, most), rng.choice((1, 2, 3, 5, 8))
            dilation = rng.choice((1, 2, 3))
            reach = dilation * (taps - 1)
            left, right = rng.choice(((reach, 0), (0, reach), (reach // 2, reach - reach // 2)))
            stride = 2 if kind == "strided" else 1
            mode = rng.choice(("zeros", "zeros", "replicate", "reflect", "circular"))
            paddings = {"padded": (0, 0), "cropped": (reach, reach)}
            layer = sc.SparseConv1d(
                channels, outputs, taps, stride, paddings.get(kind, (left, right)), dilation,
                density=0.4, block=unit, bias=rng.random() < 0.5,
                padding_mode=mode if reach < length else "zeros",
            )  # fmt: skip
            if kind == "padded":
                how = "constant", "replicate"
                layer = Function(
                    lambda x, conv: conv(F.pad(x, (left, right), how[number % 2])), layer
                )
            elif kind == "cropped":
                crop = reach - left, reach - right
                layer = Function(lambda x, conv: cropped(conv(x), *crop, number % 2), layer)
            samples = (length - 1) // stride + 1
        elif kind == "transposed":
            outputs, stride = unit * rng.randint(2, most), rng.choice((1, 2))
            extra = rng.randrange(stride)
            layer = sc.SparseConvTranspose1d(
                channels, outputs, 3, stride, 1, extra, density=0.4, block=unit,
                bias=rng.random() < 0.5,
            )  # fmt: skip
            samples = stride * (length - 1) + 1 + extra
        elif kind in ("dense", "1x1"):
            outputs, taps = unit * rng.randint(2, most), 1 if kind == "1x1" else 3
            layer = nn.Conv1d(channels, outputs, taps, padding="same", bias=rng.random() < 0.5)
        elif kind == "prelu":
            layer = nn.PReLU(rng.choice((1, channels)))
        elif kind in ("split", "part", "chunk") and channels >= 2 * unit:
            half = outputs = unit * -(-channels // unit // 2)
            layer = {
                "split": Function(lambda x: torch.split(x, half, 1)[0]),
                "part": Function(lambda x: x[:, -half:]),
                "chunk": Function(gated if unit == 1 else lambda x: gated(x, half)),
            }[kind]
        elif kind == "norm":
            layer = nn.BatchNorm1d(channels, affine=rng.random() < 0.8)
            if layer.affine:  # no function reads 0, where rounding may switch its derivative
                nn.init.uniform_(layer.bias, 0.1, 1.0)
            else:
                layer = Function(lambda x, norm: norm(x) + 0.1, layer)
        elif kind == "pool":
            size = rng.choice((3, 5))
            layer = nn.MaxPool1d(size, 1, size // 2)
        elif kind == "shrink" and length > 12:
            layer = rng.choice(SHRINKS)
            samples = layer(torch.empty(1, 1, length)).shape[2]
        elif kind in ("add", "mul") and same:
            reads = (x, rng.choice(same))
            layer = Function(torch.add if kind == "add" else torch.mul)
        elif kind == "cat":
            reads = (x, *rng.choices(equal, k=rng.randint(1, 2)))
            layer = Function(lambda *parts: torch.cat(parts, dim=1))
            outputs = sum(widths[i][0] for i in reads)
        elif kind == "relu_":  # of a tensor that is computed here
            layer = Function(lambda x: F.relu(x + x, inplace=True))
        elif kind == "function":
            layer = Function(lambda x: FUNCTIONS[number](x * 1.5))
        else:
            layer = nn.Dropout(0.0) if kind == "drop" else Function(torch.relu)
        number = rng.randrange(len(FUNCTIONS))
        self.program.append((kind, reads))
        self.layers.append(layer)
        return outputs, samples

    def example(self, dtype: torch.dtype) -> Tensor:
        return torch.randn(self.batch, self.in_channels, self.length, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        results, read = [x], set()
        for (_, reads), layer in zip(self.program, self.layers, strict=True):
            results.append(layer(*(results[i] for i in reads)))
            read.update(reads)
        heads = [y.mean(2).sum(1) for i, y in enumerate(results) if i not in read]
        last = F.adaptive_avg_pool1d(results[-1], 1).flatten(1).square().sum(1)
        return torch.stack([last, *heads]).sum(0)


def gated(x: Tensor, half: int | None = None) -> Tensor:
    y, gate = x.chunk(2, 1) if half is None else x.split(half, 1)
    return torch.tanh(y) * torch.sigmoid(gate) if gate.shape == y.shape else y


def cropped(y: Tensor, left: int, right: int, by_shape: int) -> Tensor:
    return y[:, :, left : y.shape[2] - right] if by_shape else y[..., left : -right or None]
