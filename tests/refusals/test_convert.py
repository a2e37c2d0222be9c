"""What ``sc.convert`` and ``sc.to_dense`` refuse."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import torch
from refusals import refusals
from torch import nn

from sparseconv import SparseConv1d, convert, to_dense

X = torch.randn(2, 3, 40)
MODEL = nn.Sequential(nn.Conv1d(3, 4, 9), nn.ReLU())
SMALL = nn.Sequential(nn.Conv1d(3, 4, 9), nn.Flatten(), nn.Linear(128, 2))


def distributed(model: nn.Module) -> nn.Module:
    """A DistributedDataParallel, without the processes that its constructor needs."""
    wrapper = object.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    return wrapper


test_convert = refusals(
    (lambda: convert([]), TypeError, "nn.Module, but got list"),
    (lambda: convert(nn.Sequential()), ValueError, "an nn.Conv1d, but Sequential has none"),
    (lambda: convert(MODEL, layers=["0"], max_density=0.5), ValueError, "max_density cannot"),
    (lambda: convert(MODEL, unpruned=True), ValueError, "unpruned=True requires example_input"),
    (lambda: convert(MODEL, layers="0"), TypeError, "layers must be a list of names"),
    (lambda: convert(MODEL, max_density=13), ValueError, "max_density must lie in [0, 1]"),
    (lambda: convert(MODEL, block="16"), TypeError, "block must be an int or two ints"),
    (lambda: convert(MODEL, masks={"0": X / 3}), ValueError, "zeros and ones"),
    (lambda: convert(MODEL, layers=["1"]), ValueError, "here ['0'], but got '1'"),
    (lambda: convert(MODEL, masks=[X > 0]), TypeError, "masks must be a dict that maps layer"),
    (lambda: convert(MODEL, masks={"1.weight": X}), ValueError, "masks must contain only names"),
    (lambda: convert(MODEL, masks={"0": X > 0}), ValueError, "(4, 3, 9), but has (2, 3, 40)"),
    (lambda: convert(MODEL, example_input=[X]), TypeError, "example_input must be a tensor"),
    (lambda: convert(MODEL, example_input=(2, 3)), TypeError, "fails with (2, 3); if that is"),
    (lambda: convert(SMALL, example_input=X[0]), RuntimeError, "pass a single series as x[None]"),
    (lambda: convert(nn.Sequential(SMALL, nn.BatchNorm1d(2)), example_input=X[:1]), ValueError,
     "least 2), call model.eval(), or normalise before pooling"),
    (lambda: convert(MODEL, example_input=X, rounds=3), ValueError, "at least 6"),
    (lambda: convert(torch.compile(MODEL, backend="eager")), ValueError,
     "expected a model before torch.compile"),
    (lambda: convert(distributed(MODEL)), ValueError, "convert its .module, then wrap the result"),
)  # fmt: skip


class Named(SparseConv1d):
    name = "it runs the same code"


class OwnSparse(Named):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


HOOKED = Named(2, 3, 5)
HOOKED.register_forward_hook(lambda *_: None)

LISTED, APPLIED, HELD = (nn.Sequential(Named(2, 3, 5), nn.ReLU()) for _ in range(3))
LISTED.order = [*LISTED]
APPLIED.run = partial(nn.Module.__call__, APPLIED[0])
HELD.wrapper = SimpleNamespace(layer=HELD[0])

PATCHED = Named(2, 3, 5)
PATCHED.forward = PATCHED.dense_weight

test_to_dense = refusals(
    (lambda: to_dense(3), TypeError, "an nn.Module, but got int"),
    (lambda: to_dense(distributed(HOOKED)), ValueError, "convert its .module, then wrap the res"),
    (lambda: to_dense(nn.Sequential(OwnSparse(2, 3, 5))), NotImplementedError, "'0': this OwnSp"),
    (
        OwnSparse(2, 3, 5).to_dense,
        NotImplementedError,
        "runs code that an nn.Conv1d cannot run; mov",
    ),
    (PATCHED.to_dense, NotImplementedError, "this Named runs code that"),
    (lambda: to_dense(LISTED), ValueError, "'0' is also referenced by Sequential.order, where it"),
    (lambda: to_dense(APPLIED), ValueError, "'0' is also referenced by Sequential.run, where it"),
    (lambda: to_dense(HELD), ValueError, "'0' is also referenced by Sequential.wrapper, where it"),
    (lambda: to_dense(nn.Sequential(HOOKED)), ValueError, "'0' has hooks, which would be lost"),
)
