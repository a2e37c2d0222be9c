"""Networks that can be exported: every layer, geometry and order of them that is supported."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune

import sparseconv as sc
from sparseconv import SparseConv1d, models
from sparseconv.edge.layers import Array, scores_and_bound
from sparseconv.edge.lowering import lower
from sparseconv.nn.modules import deepcopy_model

CHANNELS, LENGTH = 3, 22


def _head(channels: int, classes: int = 4) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, classes)]


def _conv(**options: object) -> nn.Sequential:
    groups = int(options.get("groups", 1))  # type: ignore[call-overload]
    first = SparseConv1d(CHANNELS, 6, 4, density=0.5, padding=(3, 1))
    second = SparseConv1d(6, 8 - 8 % groups, 5, density=0.4, **options)
    return nn.Sequential(first, nn.ReLU(), second, nn.BatchNorm1d(second.out_channels), nn.ReLU(),
                         *_head(second.out_channels))  # fmt: skip


def _dense(**options: object) -> nn.Sequential:
    conv = nn.Conv1d(CHANNELS, 6, 5, **options)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.BatchNorm1d(6), *_head(6), nn.LogSoftmax(1))


def _pruned() -> nn.Sequential:
    conv, linear = nn.Conv1d(CHANNELS, 8, 7, padding=3), nn.Linear(8, 4)
    prune.l1_unstructured(conv, "weight", 0.8)
    prune.l1_unstructured(conv, "bias", 0.3)
    prune.l1_unstructured(linear, "weight", 0.6)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), linear)


def _long_gaps() -> nn.Sequential:
    """Rows without weights, with one, and with distances beyond a byte."""
    mask = torch.zeros(5, 40, 13, dtype=torch.bool)
    mask[1, 0, 0] = mask[1, 39, 12] = mask[2, 39, 12] = mask[3, 7, 3] = mask[4, 1, 0] = True
    mask[4, ::3] = True
    wide = SparseConv1d(40, 5, 13, pattern=sc.KernelCSR.from_mask(mask), padding=6)
    return nn.Sequential(nn.Conv1d(CHANNELS, 40, 1), wide, *_head(5))


def _dsn(**options: object) -> models.DSN:
    return models.DSN(CHANNELS, 4, nf=5, kernel_size=9, depth=3, **options)  # type: ignore[arg-type]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dsn": _dsn,
    "dsn_centred_replicate": lambda: _dsn(padding="centred-replicate"),
    "dsn_optimized": lambda: sc.optimize_for_inference(_dsn()),
    "dsn_to_dense": lambda: sc.to_dense(_dsn()),
    "no_padding": lambda: _conv(),
    "stride": lambda: _conv(stride=3, padding=2),
    "dilation": lambda: _conv(dilation=3, padding="same"),
    "groups": lambda: _conv(groups=2, padding=2),
    "reflect": lambda: _conv(padding=4, padding_mode="reflect"),
    "circular": lambda: _conv(padding=4, padding_mode="circular"),
    "dense": lambda: _dense(padding=2),
    "depthwise": lambda: nn.Sequential(nn.Conv1d(3, 6, 3, groups=3), nn.ReLU(), *_head(6)),
    "pruned": _pruned,
    "long_gaps": _long_gaps,
    "empty": lambda: nn.Sequential(SparseConv1d(3, 5, 5, density=0.0), *_head(5)),
    "norm_first": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), *_head(3), nn.Softmax(1)),
    "relu_first": lambda: nn.Sequential(nn.ReLU(), nn.Identity(), *_head(3), nn.LogSoftmax(-1)),
    "norm_after_relu": lambda: nn.Sequential(
        SparseConv1d(3, 4, 3), nn.ReLU(), nn.BatchNorm1d(4), nn.Dropout(), *_head(4)
    ),
    "flattened": lambda: nn.Sequential(
        SparseConv1d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(40, 9), nn.BatchNorm1d(9),
        nn.ReLU(), nn.BatchNorm1d(9), nn.Linear(9, 2),
    ),
    "ends_with_channels": lambda: nn.Sequential(SparseConv1d(3, 4, 3, stride=3), nn.Flatten()),
    "ends_with_bins": lambda: nn.Sequential(nn.AdaptiveAvgPool1d(5), nn.Flatten(), nn.Softmax(1)),
    "bins": lambda: nn.Sequential(
        SparseConv1d(3, 4, 3), nn.AdaptiveAvgPool1d(7), nn.Conv1d(4, 2, 3), nn.Flatten(),
        nn.Linear(10, 3),
    ),
    "more_bins": lambda: nn.Sequential(nn.AdaptiveAvgPool1d(50), nn.ReLU(), *_head(3)),
    "pooled_conv": lambda: nn.Sequential(
        nn.AdaptiveAvgPool1d(9), nn.Conv1d(3, 5, 1), nn.AdaptiveAvgPool1d(1), nn.ReLU(),
        nn.Flatten(),
    ),
    "pads": lambda: nn.Sequential(
        nn.ReplicationPad1d((0, 4)), nn.Conv1d(3, 4, 5), nn.CircularPad1d(1), nn.Conv1d(4, 4, 3),
        nn.ReflectionPad1d(2), nn.Conv1d(4, 2, 3), nn.ZeroPad1d((1, 0)), nn.Conv1d(2, 2, 2),
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


def expected(model: nn.Module, X: torch.Tensor) -> tuple[Array, Array]:
    """PyTorch's scores in float64, and how far those of a float32 program may be from each."""
    with torch.no_grad():
        exact: Array = deepcopy_model(model).double()(X.double()).numpy()
    found, bound = scores_and_bound(lower(deepcopy_model(model), *X.shape[1:]), X.numpy())
    # Both are in float64, in another order.
    assert (np.abs(found - exact) <= 2.0**-20 * bound).all()
    return exact, bound
