"""What ``export_c`` refuses: one clear error, and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from edge_networks import network, series
from layers import Function
from refusals import changed, refusals
from torch import nn
from torch.nn import functional as F

import sparseconv as sc

FLAT = (nn.AdaptiveAvgPool1d(1), nn.Flatten())


def after(*modules: nn.Module) -> nn.Module:
    """The modules after a convolution from three channels to four."""
    return nn.Sequential(nn.Conv1d(3, 4, 3), *modules).eval()


def export(model: nn.Module | None = None, **options: Any) -> None:
    with TemporaryDirectory() as parent:
        given = {"example_input": series(3), "folder": Path(parent) / "out"} | options
        try:
            sc.export_c(network("dsn") if model is None else model, **given)
        finally:
            assert not any(Path(parent).iterdir())


NOT = NotImplementedError
MANY = nn.Sequential(nn.Flatten(), nn.Linear(140_000, 2)).eval()
nn.init.constant_(MANY[1].weight, 1.0)


@dataclass
class Wrapped:  # torch cannot look into it
    scores: torch.Tensor


LONG = dict.fromkeys(("example_input", "calibration"), series(2, channels=1, length=140_000))


test_export_c = refusals(
    (lambda: export(3), TypeError, "model"),
    (lambda: export(after(nn.Mish(), *FLAT)), NOT, "'1' (Mish)"),
    (lambda: export(after(nn.PReLU(4), *FLAT)), NOT, "'weight'"),
    (lambda: export(after(nn.GELU("tanh"), *FLAT)), NOT, "approximate"),
    (lambda: export(after(nn.BatchNorm1d(4, track_running_stats=False), *FLAT)), ValueError, "'1'"),
    (lambda: export(after(*FLAT, nn.Linear(4, 1), nn.Softmax(1))), ValueError, "'4' (Softmax)"),
    (lambda: export(after(nn.Linear(20, 2))), ValueError, "(1, 4, 2)"),
    (lambda: export(changed(after(nn.ReLU(), *FLAT), lambda m: m[0].bias.data.fill_(-np.inf))),
     ValueError, "finite bias"),  # PyTorch's scores are finite
    (lambda: export(network("dsn").train()), ValueError, "eval()"),
    (lambda: export(after(nn.RReLU(), *FLAT).train()), NOT, "is in training mode"),
    (lambda: export(changed(network("dsn"), lambda m: m.blocks[1].conv.values.data.fill_(np.nan))),
     ValueError, "finite"),
    (lambda: export(example_input=series(1) * np.float32(1e38)), ValueError, "example_input"),
    (lambda: export(example_input=series(1)[0, 0]), ValueError, "example_input"),
    (lambda: export(Function(lambda x: (x * torch.randn(1, 3, 1500)).mean(-1)).eval(),
                    example_input=series(3, length=1500)), NOT, "'mul'"),
    (lambda: export(weights="int8", calibration=series(3, length=50)), ValueError, "calibration"),
    (lambda: export(weights="int8"), ValueError, "pass calibration="),
    (lambda: export(weights="int4"), ValueError, "weights must be one of"),
    (lambda: export(calibration=series(5)), ValueError, "calibration"),
    (lambda: export(MANY, **LONG, weights="int8"), ValueError, "linear"),
    (lambda: export(classes=["a"]), ValueError, "classes"),
    (lambda: export(name="a-b"), ValueError, "name"),
    (lambda: export(folder=__file__), ValueError, "folder"),
)  # fmt: skip


def some(x: torch.Tensor) -> torch.Tensor:
    return x.mean(-1) if x.sum() > 0 else x.amax(-1)


UNEVEN = torch.tensor([0, 2, 1])
FUNCTIONS: Any = (
    (some, NOT, "torch.export"),
    (lambda x: F.dropout(x).mean(-1), NOT, "'dropout'"),
    (lambda x: (x - x[:1]).mean(-1) + x.amax(-1), ValueError, "model"),
    (lambda x: 1 / x.mean(-1), NOT, "'reciprocal'"),
    (lambda x: x.mean(-1) / x.amax(-1), NOT, "'div'"),
    (lambda x: x.mean((1, 2)), NOT, "'mean'"),
    (lambda x: (x**3).mean(-1), NOT, "'pow'"),
    (lambda x: F.interpolate(x, 33).mean(-1), NOT, "'upsample_nearest1d'"),
    (lambda x: F.threshold(x, 0, 1), NOT, "'threshold'"),
    (lambda x: x @ x.transpose(1, 2), NOT, "'matmul'"),
    (lambda x: (x.mean(-1), x), TypeError, "tuple"),
    (lambda x: Wrapped(x.mean(-1)), TypeError, "Wrapped"),
    (lambda x: torch.ones(len(x), 2), ValueError, "model"),
    (lambda x: F.pad(x, (1, 1), value=1.0).mean(-1), NOT, "'pad'"),
    (lambda x: torch.cat([x, torch.ones(1, 3, 2)], -1).mean(-1), NOT, "'cat'"),
    (lambda x: torch.cat([x, x])[:1].mean(-1), NOT, "'cat'"),
    (lambda x: (x.mean(-1).softmax(1)[..., None] * x).mean(-1), NOT, "'mul'"),
    (lambda x: x.mean(-1).squeeze(), ValueError, "(3,)"),
    (lambda x: x.softmax(1).mean(-1), NOT, "'softmax' has dim=1"),
    (lambda x: (x[..., :1] + torch.ones(1, 3, 4)).mean(-1), NOT, "'add' broadcasts"),
    (lambda x: F.pad(x[:, None], (1, 1)).mean((1, 3)), NOT, "'pad' receives 4 dimensions"),
    (lambda x: F.pad(x.index_select(1, UNEVEN).index_select(2, UNEVEN), (1, 1)).mean(-1), NOT,
     "in an order that"),
)  # fmt: skip

test_export_c_of_a_function = refusals(
    *((lambda f=f: export(Function(f).eval()), *error) for f, *error in FUNCTIONS)
)
