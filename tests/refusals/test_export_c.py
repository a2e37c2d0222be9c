"""What ``export_c`` refuses: one clear error, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from edge_networks import network, series
from refusals import refusals
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig
from torch.nn import functional as F

import sparseconv as sc

FLAT = (nn.AdaptiveAvgPool1d(1), nn.Flatten())


def after(*modules: nn.Module) -> nn.Module:
    """The modules after a convolution from three channels to four."""
    return nn.Sequential(nn.Conv1d(3, 4, 3), *modules).eval()


class Forward(nn.Module):
    """A model of a function alone."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


@torch.no_grad()
def dsn(change: Callable[[Any], Any]) -> nn.Module:
    model = network("dsn")
    change(model)
    return model


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
HIDDEN: Any = after(nn.ReLU(), *FLAT)
HIDDEN[0].bias.data[0] = -np.inf  # PyTorch's scores are finite
QUANTIZED, WEIGHT = get_default_qat_qconfig("x86").weight(), torch.rand(3, 1)


@dataclass
class Wrapped:  # torch cannot look into it
    scores: torch.Tensor


LONG = series(2, channels=1, length=140_000)


test_export_c = refusals(
    (lambda: export(3), TypeError, "nn.Module, but got int"),
    (lambda: export(after(nn.Mish(), *FLAT)), NOT, "module '1' (Mish) cannot be exported to C"),
    (lambda: export(after(nn.PReLU(4), *FLAT)), NOT, "has several values of 'weight'; use"),
    (lambda: export(after(nn.GELU("tanh"), *FLAT)), NOT, "approximate='none', but has 'tanh'"),
    (lambda: export(after(nn.Flatten(), nn.LayerNorm(80))), NOT,
     "module '2' (LayerNorm) cannot be exported to C: 'layer_norm' has no counterpart"),
    (lambda: export(Forward(lambda x: x.mean(-1) if x.sum() > 0 else x.amax(-1))), NOT,
     "torch.export cannot trace it"),
    (lambda: export(Forward(lambda x: F.dropout(x).mean(-1))), NOT,
     "the model (Forward) cannot be exported to C: 'dropout' is random"),
    (lambda: export(Forward(lambda x: (x - x[:1]).mean(-1) + x.amax(-1))), ValueError,
     "expected a model that runs the same operations for every series"),
    (lambda: export(Forward(lambda x: 1 / x.mean(-1))), NOT, "'reciprocal' has no counterpart"),
    (lambda: export(Forward(lambda x: x.mean(-1) / x.amax(-1))), NOT,
     "'div' of two results of the model has no counterpart"),
    (lambda: export(Forward(lambda x: x.mean((1, 2)))), NOT,
     "'mean' must be along one dimension at a time, as in x.mean(-1).mean(1)"),
    (lambda: export(Forward(lambda x: x - x.mean(0))), NOT, "'mean' must be along one dimension"),
    (lambda: export(Forward(lambda x: (x**3).mean(-1))), NOT, "'pow' must have exponent 2"),
    (lambda: export(Forward(lambda x: F.interpolate(x, 33).mean(-1))), NOT,
     "'upsample_nearest1d' must lengthen the series by a whole factor"),
    (lambda: export(Forward(lambda x: F.threshold(x, 0, 1))), NOT, "its value must equal its"),
    (lambda: export(Forward(lambda x: x @ x.transpose(1, 2))), NOT,
     "'matmul' combines several results of the model"),
    (lambda: export(Forward(lambda x: (x.mean(-1), x))), TypeError,
     "the model must return one tensor, but returned tuple (entries: 2); wrap it in a module that"),
    (lambda: export(Forward(lambda x: {"scores": x.mean(-1), "n": 3})), TypeError,
     "but returned dict (entries: 2)"),
    (lambda: export(Forward(lambda x: Wrapped(x.mean(-1)))), TypeError, "but returned Wrapped (e"),
    (lambda: export(Forward(lambda x: None)), TypeError, "but returned NoneType (entries: 0)"),
    (lambda: export(Forward(lambda x: torch.ones(len(x), 2))), ValueError, "not depend on the ser"),
    (lambda: export(Forward(lambda x: F.pad(x, (1, 1), value=1.0).mean(-1))), NOT,
     "'pad' pads with 1.0; pad only time"),
    (lambda: export(Forward(lambda x: torch.cat([x, torch.ones(1, 3, 2)], -1).mean(-1))), NOT,
     "'cat' joins constants"),
    (lambda: export(Forward(lambda x: (x * torch.randn(1, 3, 1500)).mean(-1)),
                    example_input=series(3, length=1500)), NOT, "'mul' has 4500 factors"),
    (lambda: export(Forward(lambda x: (x.mean(-1).softmax(1)[..., None] * x).mean(-1))), NOT,
     "'mul' comes after a softmax, which must come last"),
    (lambda: export(after(nn.Linear(20, 2))), ValueError, "(1, 4, 2) for one case; end it"),
    (lambda: export(Forward(lambda x: x.mean(-1).squeeze())), ValueError, "(3,) for one case; us"),
    (lambda: export(after(*FLAT, nn.Linear(4, 1), nn.Softmax(1))), ValueError,
     "(Softmax): expected several scores, since the softmax of a single score is always 1; use nn"),
    (lambda: export(after(nn.BatchNorm1d(4, track_running_stats=False), *FLAT)), ValueError,
     "running statistics"),
    (lambda: export(network("dsn").train()), ValueError, "call model.eval()"),
    (lambda: export(torch.export.export(after(*FLAT), (series(2),)).module()), ValueError,
     "mode; pass the original model, before torch.export, in eval mode"),
    (lambda: export(Forward(lambda x: x.mean(-1) * QUANTIZED(WEIGHT))), NOT,
     "'fused_moving_avg_obs_fake_quant' cannot be computed in float64; if prepare_"),
    (lambda: export(dsn(lambda m: m.blocks[1].conv.values.fill_(np.nan))), ValueError,
     "module 'blocks.1.conv' (SparseConv1d): expected a finite weight, but"),
    (lambda: export(HIDDEN), ValueError, "module '0' (Conv1d): expected a finite bias, but"),
    (lambda: export(example_input=series(1) * np.float32(1e38)), ValueError,
     "its scores for example_input are infinite or NaN"),
    (lambda: export(nn.Flatten().eval()), ValueError, "computes its output, but this one only"),
    (lambda: export(weights="int8", calibration=series(3, length=50)), ValueError,
     "calibration must have the channels and length of example_input, (3, "),
    (lambda: export(network("flattened"), example_input=series(2, length=30)), RuntimeError,
     "shapes cannot be multiplied"),
    (lambda: export(example_input=series(1)[..., :2], model=after(*FLAT)), RuntimeError,
     "in 0 (Conv1d); the series are too short for this layer: pass longer ones"),
    (lambda: export(after(*FLAT), example_input=series(1)[0]), RuntimeError,
     "in 0 (Conv1d); expected (n_cases, n_channels, n_timepoints); pass a single series"),
    (lambda: export(example_input=series(1)[0, 0]), ValueError, "expected example_input to cont"),
    (lambda: export(example_input=series(1) * np.nan), ValueError, "finite values in example"),
    (lambda: export(classes=["a"]), ValueError, "classes must contain 4 names, but got 1"),
    (lambda: export(calibration=series(5)), ValueError, "calibration requires weights='int8'"),
    (lambda: export(weights="int8"), ValueError, "calibration=X_train"),
    (lambda: export(MANY, example_input=LONG, weights="int8", calibration=LONG), ValueError,
     "too large for int32; export float32"),
    (lambda: export(name="a-b"), ValueError, "name must be a C identifier"),
    (lambda: export(folder=__file__), ValueError, "is a file or contains files"),
    (lambda: export(folder=Path(__file__).parent), ValueError, "contains files"),
)  # fmt: skip
