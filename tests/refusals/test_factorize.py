"""What ``factorize`` refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from refusals import refusals
from torch import nn
from torch.nn.utils import prune

import sparseconv as sc


def model(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(layers or [nn.Conv1d(4, 4, 3) for _ in range(3)]))


def call(whole: nn.Module, *names: str, **options: Any) -> Callable[[], Any]:
    """Factorize the set of the named layers."""
    return lambda: sc.factorize(
        whole, layers=[list(names)] if names else None, **(options or {"rank": 1})
    )


def pair(layer: nn.Module) -> Callable[[], Any]:
    return call(model(nn.Conv1d(4, 4, 3), layer), "0", "1")


def hooked() -> nn.Module:
    conv = nn.Conv1d(4, 4, 3)
    conv.register_forward_hook(lambda *_: None)
    return conv


def causal() -> nn.Module:
    conv = nn.Conv1d(4, 4, 3)
    forward = conv.forward
    conv.forward = lambda input: forward(nn.functional.pad(input, (2, 0)))
    return conv


def tied() -> nn.Module:
    found = model()
    found[2].weight = found[0].weight
    return found


def listed() -> nn.Module:
    found = model()
    found.kept = [found[1]]
    return found


MINE = type("Mine", (sc.SparseConv1d,), {"forward": hooked})

test_factorize = refusals(
    (call(model(), rank=1, parameter_compression=2), ValueError, "rank or parameter_compression"),
    (call(model(), rank=0), ValueError, "rank"),
    (call(model(), parameter_compression=1), ValueError, "parameter_compression"),
    (call(model(), rank=1, method="middle"), ValueError, "method"),
    (lambda: sc.factorize(model(), layers=["0", "1"], rank=1), ValueError, "several for any other"),
    (call(model(), "0", "9"), ValueError, "'9'"),
    (call(model(), "0", "0"), ValueError, "a layer may be named only once"),
    (call(model(), "0", "1", rank=1, method="svd"), ValueError, "one layer for method='svd'"),
    (call(model(), "0", "1", rank=9), ValueError, "a rank of at most 8"),
    (call(model(), "0", "1", parameter_compression=50), ValueError, "_compression of at most"),
    (call(nn.Linear(2, 2)), ValueError, "nn.Conv1d"),
    (call(torch.compile(model())), ValueError, "factorize its ._orig_mod"),
    (pair(nn.Conv1d(4, 4, 5)), ValueError, "must have the same shape"),
    (pair(nn.Conv1d(4, 4, 3, stride=2)), ValueError, "stride"),
    (pair(nn.Conv1d(4, 4, 3, groups=2)), ValueError, "must have groups=1"),
    (pair(nn.ConvTranspose1d(4, 4, 3)), ValueError, "is a ConvTranspose1d"),
    (pair(sc.SparseConv1d(4, 4, 3)), ValueError, "convert it with sc.to_dense"),
    (call(model(MINE(4, 4, 3), MINE(4, 4, 3))), ValueError, "is a Mine"),
    (pair(hooked()), ValueError, "has hooks"),
    (pair(causal()), ValueError, "'1' has its own forward"),
    (call(model(causal(), causal())), ValueError, "but found none; '0': it has its own forward"),
    (pair(prune.l1_unstructured(nn.Conv1d(4, 4, 3), "bias", 2)), ValueError, "bias"),
    (call(tied(), "0", "1"), ValueError, "shares its weight"),
    (call(listed(), "0", "1"), ValueError, "Sequential.kept"),
)
