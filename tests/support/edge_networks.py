"""Networks that can be exported: every layer, geometry and order of them that is supported."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import sparseconv as sc
from sparseconv import SparseConv1d, models
from sparseconv.core.modules import deepcopy_model
from sparseconv.edge.layers import Array, Network, scores_and_bound
from sparseconv.edge.lowering import lower

CHANNELS, LENGTH = 3, 22


def _head(channels: int, classes: int = 4) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, classes)]


def _conv(**options: object) -> nn.Sequential:
    groups = int(options.get("groups", 1))  # type: ignore[call-overload]
    first = SparseConv1d(CHANNELS, 6, 4, density=0.5, padding=(3, 1))
    second = SparseConv1d(6, 8 - 8 % groups, 5, density=0.4, **options)
    return nn.Sequential(first, nn.ReLU(), second, nn.BatchNorm1d(second.out_channels), nn.ReLU(),
                         *_head(second.out_channels))  # fmt: skip


def _pruned() -> nn.Sequential:
    conv, linear = nn.Conv1d(CHANNELS, 8, 7, padding=3), nn.Linear(8, 4)
    prune.l1_unstructured(conv, "weight", 0.8)
    prune.l1_unstructured(conv, "bias", 0.3)
    prune.l1_unstructured(linear, "weight", 0.6)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), linear)


def _converted(model: nn.Module) -> nn.Module:
    """All convolutions pruned, and made sparse."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            prune.l1_unstructured(layer, "weight", 0.6)
    return sc.convert(model, max_density=0.5).model


def _long_gaps() -> nn.Sequential:
    """Rows without weights, with one, and with distances beyond a byte."""
    mask = torch.zeros(5, 40, 13, dtype=torch.bool)
    mask[1, 0, 0] = mask[1, 39, 12] = mask[2, 39, 12] = mask[3, 7, 3] = mask[4, 1, 0] = True
    mask[4, ::3] = True
    wide = SparseConv1d(40, 5, 13, pattern=sc.KernelCSR.from_mask(mask), padding=6)
    return nn.Sequential(nn.Conv1d(CHANNELS, 40, 1), wide, *_head(5))


def _dsn() -> models.DSN:
    return models.DSN(CHANNELS, 4, nf=5, kernel_size=9, depth=3)


class Causal(nn.Conv1d):
    """A subclass with its own forward, as in every WaveNet."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class TemporalBlock(nn.Module):
    """Of a residual TCN: convolutions that pad both ends and are cut, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.cut, sizes = 2 * dilation, {"padding": 2 * dilation, "dilation": dilation}
        self.first = parametrizations.weight_norm(nn.Conv1d(inputs, outputs, 3, **sizes))
        self.second = SparseConv1d(outputs, outputs, 3, density=0.5, **sizes)
        self.across = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x)[:, :, : -self.cut])
        y = F.dropout(self.second(y)[..., : -self.cut].contiguous().relu_(), 0.2, self.training)
        return torch.relu(y + self.across(x))


class ResidualTCN(nn.Module):
    """Reads the scores from the last sample."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(TemporalBlock(3, 5, 1), TemporalBlock(5, 5, 2))
        self.last = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(x)[:, :, -1])


class Everything(nn.Module):
    """Gates, squeeze and excitation, branches of the same tensor, halves, reversed time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gates = Causal(3, 4, 2), Causal(4, 8, 2, dilation=2)
        self.few, self.many = nn.Linear(8, 2), nn.Linear(2, 4)
        self.norm, self.end = nn.BatchNorm1d(12), nn.Conv1d(12, 4, 1)
        self.register_buffer("middle", torch.randn(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first((x - self.middle) / 2)
        kept, gate = self.gates(x).chunk(2, dim=1)
        y = torch.tanh(kept) * torch.sigmoid(gate) - F.glu(torch.cat([x, kept], 1), 1)
        twice = torch.cat([y.mean(-1)] * 2, 1)
        scale = F.hardsigmoid(self.many(F.leaky_relu(self.few(twice), 0.2)))
        y = torch.cat([y * scale.unsqueeze(-1), x.flip(-1), F.max_pool1d(F.elu(x), 3, 1, 1)], 1)
        y = self.end(F.gelu(F.hardswish(self.norm(y)).abs()))
        whole = torch.cat([y.amax(-1), F.adaptive_avg_pool1d(1 - y, 1).flatten(1)], dim=1)
        return whole.view(-1, 2, 4).sum(-1) + whole[:, 3:5] * 0.5


class UNet(nn.Module):
    """Down with a stride and a pool, up with transposed convolutions, joined at each length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 8, 4, 2, padding=1)
        self.middle, self.norm = nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(4)
        self.up, self.mixed = nn.ConvTranspose1d(8, 4, 3, 2), nn.Conv1d(12, 6, 3, padding=1)
        self.last = nn.ConvTranspose1d(6, 6, 5, 2, padding=2, output_padding=1, groups=2)
        self.end = nn.Conv1d(18, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.first(x).relu()
        half = self.down(whole).relu()
        up = self.norm(self.up(self.middle(F.max_pool1d(half, 2)).relu())).relu()
        half = self.mixed(torch.cat([up, half], 1)).relu()
        parts = whole, self.last(half).relu(), F.interpolate(half, scale_factor=2)
        return self.end(torch.cat(parts, 1)).mean(-1)


class Positions(nn.Module):
    """A parameter of each sample before padding, pieces, joins and averages; features as series."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(3, 4, 5, padding=2), nn.BatchNorm1d(4)
        self.depth, self.point = nn.Conv1d(4, 4, 3, padding=1, groups=4), nn.Conv1d(4, 4, 1)
        self.mixed, self.end = nn.Linear(4, 8), nn.Linear(12, 4)
        self.at = nn.Parameter(torch.randn(1, 4, LENGTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.norm(self.first(x))) + self.at
        h = h + F.relu6(self.point(self.depth(h)))
        joined = torch.cat([self.first(x) + self.at, h], 1)[:, 2:6]
        piece = self.depth((self.first(x) * self.at)[..., :9])
        series = self.mixed(h.amax(-1)).view(-1, 2, 4).transpose(1, 2)
        means = (self.first(x) + self.at).mean(-1) + joined.mean(-1)
        parts = means, piece.amax(-1), self.depth(series).mean(-1)
        return self.end(torch.cat(parts, 1))


class Alike(nn.Module):
    """Other names of functions, and of dimensions: series by time, means of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 4, 3), nn.Conv1d(4, 4, 3)
        self.across = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).clamp(min=0)
        y = F.threshold(self.second(x), -0.5, -0.5).clip(-0.3, 0.5).clamp_(0.05)
        z = y.transpose(1, 2) ** 2
        time = torch.cat([z.mean(1), z.amax(-2, keepdim=True).flatten(1), z.max(1).values], 1)
        channels = y.amax(1, keepdim=True).mean(-1), x.mean(-1).mean(-1, keepdim=True)
        bins = F.adaptive_max_pool1d(y, 5).mean(-1)
        return torch.cat([time, bins, *channels, (self.across @ y).sum(-1)], 1)


class Part(nn.Module):
    """Some of the channels and samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:, 1::2]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dsn": _dsn,
    "positions": Positions,
    "stride": lambda: _conv(stride=3, padding=2),
    "dilation": lambda: _conv(dilation=3, padding="same"),
    "groups": lambda: _conv(groups=2, padding=2),
    "reflect": lambda: _conv(padding=4, padding_mode="reflect"),
    "circular": lambda: _conv(padding=4, padding_mode="circular"),
    "blocks": lambda: nn.Sequential(  # a smaller last block; groups; distances beyond a byte
        nn.Conv1d(CHANNELS, 47, 1),
        SparseConv1d(47, 47, 13, density=0.15, block=16, padding=6), nn.BatchNorm1d(47), nn.ReLU(),
        nn.Conv1d(47, 32, 1),
        SparseConv1d(32, 48, 3, density=0.4, block=(8, 16), groups=2, stride=2), *_head(48),
    ),
    "pruned": _pruned,
    "long_gaps": _long_gaps,
    "empty": lambda: nn.Sequential(SparseConv1d(3, 5, 5, density=0.0), *_head(5)),
    "norm_first": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), *_head(3), nn.Softmax(1)),
    "norm_after_relu": lambda: nn.Sequential(
        SparseConv1d(3, 4, 3), nn.ReLU(), nn.BatchNorm1d(4), nn.Dropout(), *_head(4)
    ),
    "flattened": lambda: nn.Sequential(
        SparseConv1d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(40, 9), nn.BatchNorm1d(9),
        nn.ReLU(), nn.BatchNorm1d(9), nn.Linear(9, 2),
    ),
    "ends_with_bins": lambda: nn.Sequential(nn.AdaptiveAvgPool1d(5), nn.Flatten(), nn.Softmax(1)),
    "bins": lambda: nn.Sequential(
        SparseConv1d(3, 4, 3), nn.AdaptiveAvgPool1d(7), nn.AdaptiveMaxPool1d(7),  # of one each
        nn.Conv1d(4, 2, 3), nn.Flatten(), nn.Linear(10, 3),
    ),
    "keywords": lambda: nn.Sequential(
        nn.Conv1d(3, 8, 5, stride=2, padding=2), nn.BatchNorm1d(8), nn.ReLU6(), nn.Dropout1d(),
        nn.Conv1d(8, 8, 3, groups=8, padding=1), nn.ReLU6(), nn.Conv1d(8, 9, 1),
        nn.MaxPool1d(3, 2, 1, ceil_mode=True), nn.SiLU(), nn.AvgPool1d(2), nn.PReLU(),
        nn.AdaptiveMaxPool1d(2), nn.Flatten(), nn.Linear(18, 4), nn.Hardtanh(-2, 2),
    ),
    "residual_tcn": ResidualTCN,
    "inception_time": lambda: _converted(models.InceptionTime(CHANNELS, 4, nf=3, depth=3)),
    "unet": lambda: _converted(UNet()),
    "transposed": lambda: nn.Sequential(  # a phase without taps, with negative padding; a crop
        nn.ConvTranspose1d(3, 4, 2, 3, padding=3, output_padding=2, dilation=3), nn.ReLU(),
        sc.SparseConvTranspose1d(4, 6, 7, 2, 2, groups=2, dilation=3, density=0.4),
        nn.ZeroPad1d((-3, -2)), nn.Upsample(scale_factor=3), *_head(6),
    ),
    "everything": Everything,
    "alike": Alike,
    "pads": lambda: nn.Sequential(
        nn.ReplicationPad1d((0, 4)), nn.Conv1d(3, 4, 5), nn.CircularPad1d(1), nn.Conv1d(4, 4, 3),
        nn.ReflectionPad1d(2), Part(), nn.Conv1d(3, 2, 3), nn.ConstantPad1d((-1, 8), 0.0),
        nn.Conv1d(2, 2, 2, dilation=2),
        *_head(2),
    ),
}  # fmt: skip


def network(name: str, seed: int = 0) -> nn.Module:
    """In eval mode, with statistics and affine pairs as training leaves them."""
    torch.manual_seed(seed)
    model = NETWORKS[name]().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
            with torch.no_grad():
                module.weight.uniform_(0.7, 1.5).mul_(torch.randn(module.weight.shape).sign())
                module.bias.normal_(0, 0.5)
    with torch.no_grad():
        model(series(200, seed))
    return model.eval()


def series(
    n_cases: int, seed: int = 0, channels: int = CHANNELS, length: int = LENGTH
) -> torch.Tensor:
    return torch.randn(n_cases, channels, length, generator=torch.Generator().manual_seed(seed))


@functools.cache
def lowered(name: str) -> Network:
    return lower(network(name), CHANNELS, LENGTH)


def export(name: str, folder: Path, weights: str) -> Path:
    """The program ``net`` of a network, which knows 24 series."""
    X = series(24)
    known = X if weights == "int8" else None
    return sc.export_c(network(name), X, folder, name="net", weights=weights, calibration=known)


def expected(
    model: nn.Module, X: torch.Tensor, lowered: Network | None = None
) -> tuple[Array, Array]:
    """PyTorch's scores in float64, and how far those of a float32 program may be from each."""
    with torch.no_grad():
        exact: Array = deepcopy_model(model).double()(X.double()).numpy()
    lowered = lowered or lower(deepcopy_model(model), *X.shape[1:])
    found, bound = scores_and_bound(lowered, X.numpy())
    # Both are in float64, in another order.
    assert (np.abs(found - exact) <= 2.0**-20 * bound).all()
    return exact, bound


EXTREMES = [np.nan, np.inf, -np.inf, 1e-45, -1e-39, 3e38, -3e38, 0.0, -0.0, 1e6, -1e6]


def extreme(n_cases: int, channels: int, length: int) -> Array:
    """Random series of all magnitudes, with values in them that no series should have."""
    rng = np.random.default_rng(n_cases)
    X = rng.normal(size=(n_cases, channels, length)).astype(np.float32)
    X *= 10.0 ** rng.integers(-3, 4, size=(n_cases, 1, 1))
    X[rng.random(X.shape) < 0.05] = rng.choice(EXTREMES)
    places = rng.random(X.shape) < 0.02
    X[places] = rng.choice(np.array(EXTREMES, np.float32), places.sum())
    return X.astype(np.float32)
