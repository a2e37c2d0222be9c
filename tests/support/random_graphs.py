"""Random networks of layers and functions around sparse convolutions, as graphs of any form."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
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
        most = 9 if unit == 1 else 4
        self.batch, self.length = rng.choice((1, 2, 3, 5, 16, 20, 33)), rng.randint(9, 70)
        widths = [(unit * rng.randint(1, 4), self.length)]
        self.in_channels = widths[0][0]
        self.layers = nn.ModuleList()
        self.ends: list[tuple[int, int]] = []  # samples that are padded or cropped
        self.program: list[tuple[str, tuple[int, ...], int]] = []
        for _ in range(rng.randint(4, 14)):
            x = rng.randrange(max(0, len(widths) - 3), len(widths))
            channels, length = widths[x]
            kind = rng.choice(KINDS)
            same = [i for i, width in enumerate(widths) if width == widths[x]]
            equal = [i for i, width in enumerate(widths) if width[1] == length]
            reads: tuple[int, ...] = (x,)
            layer: nn.Module = nn.Identity()
            if kind == "valid" and length > 30:
                outputs, taps, dilation = unit * rng.randint(2, most), 4, rng.choice((1, 3))
                layer = sc.SparseConv1d(
                    channels, outputs, taps, padding=rng.choice((0, 0, 1)), dilation=dilation,
                    density=0.4, block=unit,
                )  # fmt: skip
                widths.append((outputs, layer(torch.empty(1, channels, length)).shape[2]))
            elif kind in ("ends", "longer") and length > 12:
                ends = rng.choice(((0, 2), (3, 0), (5, 0), (1, 4)))
                self.ends.append(ends)
                widths.append((channels, length + sum(ends) * (1 if kind == "longer" else -1)))
            elif kind == "upsampled" and length < 80:
                layer = nn.Upsample(scale_factor=rng.choice((2, 3)))
                widths.append((channels, layer(torch.empty(1, 1, length)).shape[2]))
            elif kind == "glu" and channels % 2 == 0 and unit == 1:
                layer = nn.GLU(1)
                widths.append((channels // 2, length))
            elif kind in ("sparse", "strided", "padded", "cropped"):
                outputs, taps, dilation = (
                    unit * rng.randint(2, most),
                    rng.choice((1, 2, 3, 5, 8)),
                    1,
                )
                dilation = rng.choice((1, 2, 3))
                reach = dilation * (taps - 1)
                padding = rng.choice(((reach, 0), (0, reach), (reach // 2, reach - reach // 2)))
                if kind == "padded":
                    self.ends.append(padding)
                    padding = (0, 0)
                elif kind == "cropped":
                    self.ends.append((reach - padding[0], reach - padding[1]))
                    padding = (reach, reach)
                stride = 2 if kind == "strided" else 1
                mode = rng.choice(("zeros", "zeros", "replicate", "reflect", "circular"))
                layer = sc.SparseConv1d(
                    channels, outputs, taps, stride, padding, dilation, density=0.4, block=unit,
                    bias=rng.random() < 0.5, padding_mode=mode if reach < length else "zeros",
                )  # fmt: skip
                widths.append((outputs, (length - 1) // stride + 1))
            elif kind == "transposed":
                outputs, stride = unit * rng.randint(2, most), rng.choice((1, 2))
                extra = rng.randrange(stride)
                layer = sc.SparseConvTranspose1d(
                    channels, outputs, 3, stride, 1, extra, density=0.4, block=unit,
                    bias=rng.random() < 0.5,
                )  # fmt: skip
                widths.append((outputs, stride * (length - 1) + 1 + extra))
            elif kind in ("dense", "1x1"):
                outputs, taps = unit * rng.randint(2, most), 1 if kind == "1x1" else 3
                layer = nn.Conv1d(channels, outputs, taps, padding="same", bias=rng.random() < 0.5)
                widths.append((outputs, length))
            elif kind == "prelu":
                layer = nn.PReLU(rng.choice((1, channels)))
                widths.append(widths[x])
            elif kind in ("split", "part", "chunk") and channels >= 2 * unit:
                widths.append((self.half(channels), length))
            elif kind == "norm":
                layer = nn.BatchNorm1d(channels, affine=rng.random() < 0.8)
                if layer.affine:  # no function reads 0, where rounding may switch its derivative
                    nn.init.uniform_(layer.bias, 0.1, 1.0)
                widths.append(widths[x])
            elif kind == "pool":
                size = rng.choice((3, 5))
                layer = nn.MaxPool1d(size, 1, size // 2)
                widths.append(widths[x])
            elif kind == "shrink" and length > 12:
                layer = rng.choice(SHRINKS)
                widths.append((channels, layer(torch.empty(1, 1, length)).shape[2]))
            elif kind in ("add", "mul") and same:
                reads = (x, rng.choice(same))
                widths.append(widths[x])
            elif kind == "cat":
                reads = (x, *rng.choices(equal, k=rng.randint(1, 2)))
                widths.append((sum(widths[i][0] for i in reads), length))
            else:
                kind = kind if kind in ("relu_", "function", "drop") else "relu"
                widths.append(widths[x])
            self.program.append((kind, reads, rng.randrange(len(FUNCTIONS))))
            self.layers.append(layer)

    def half(self, channels: int) -> int:
        return self.unit * -(-channels // self.unit // 2)

    def example(self, dtype: torch.dtype) -> Tensor:
        return torch.randn(self.batch, self.in_channels, self.length, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        results, unread, ends = [x], [True], iter(self.ends)
        for (kind, reads, function), layer in zip(self.program, self.layers, strict=True):
            first, *others = (results[i] for i in reads)
            if kind == "relu":
                y = torch.relu(first)
            elif kind == "relu_":  # of a tensor that is computed here
                y = F.relu(first + first, inplace=True)
            elif kind == "function":
                y = FUNCTIONS[function](first * 1.5)
            elif kind == "add":
                y = first + others[0]
            elif kind == "mul":
                y = first * others[0]
            elif kind == "cat":
                y = torch.cat([first, *others], dim=1)
            elif kind == "padded":
                y = layer(F.pad(first, next(ends), "replicate" if function % 2 else "constant"))
            elif kind == "cropped":
                left, right = next(ends)
                y = layer(first)
                y = (
                    y[:, :, left : y.shape[2] - right]
                    if function % 2
                    else y[..., left : -right or None]
                )
            elif kind in ("ends", "longer"):
                left, right = next(ends)
                y = first[..., left : first.shape[2] - right]
                y = F.pad(first, (left, right)) if kind == "longer" else y
            elif kind == "split":
                y = torch.split(first, self.half(first.shape[1]), 1)[0]
            elif kind == "chunk":
                half = self.half(first.shape[1])
                y, gate = first.chunk(2, 1) if self.unit == 1 else first.split(half, 1)
                y = torch.tanh(y) * torch.sigmoid(gate) if gate.shape == y.shape else y
            elif kind == "part":
                y = first[:, -self.half(first.shape[1]) :]
            elif kind == "norm":
                y = layer(first) if layer.affine else layer(first) + 0.1
            elif kind == "drop":
                y = F.dropout(first, 0.0, self.training)
            else:
                y = layer(first)
            for i in reads:
                unread[i] = False
            results.append(y)
            unread.append(True)
        heads = [y.mean(2).sum(1) for y, leaf in zip(results, unread, strict=True) if leaf]
        last = F.adaptive_avg_pool1d(results[-1], 1).flatten(1).square().sum(1)
        return torch.stack([last, *heads]).sum(0)
