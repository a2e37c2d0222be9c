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


def distributed(model: nn.Module) -> nn.Module:
    """A DistributedDataParallel, without the processes that its constructor needs."""
    wrapper = object.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    return wrapper


test_convert = refusals(
    (lambda: convert([]), TypeError, "nn.Module"),
    (lambda: convert(nn.Sequential()), ValueError, "an nn.Conv1d"),
    (lambda: convert(MODEL, layers=["0"], max_density=0.5), ValueError, "max_density"),
    (lambda: convert(MODEL, unpruned=True), ValueError, "unpruned=True"),
    (lambda: convert(MODEL, max_density=13), ValueError, "max_density"),
    (lambda: convert(MODEL, block="16"), TypeError, "block"),
    (lambda: convert(MODEL, masks={"0": X / 3}), ValueError, "the mask of '0'"),
    (lambda: convert(MODEL, layers=["1"]), ValueError, "layers must contain only names"),
    (lambda: convert(MODEL, masks={"1.weight": X}), ValueError, "masks must contain only names"),
    (lambda: convert(MODEL, masks={"0": X > 0}), ValueError, "(4, 3, 9), but has (2, 3, 40)"),
    (lambda: convert(MODEL, example_input=[X]), TypeError, "example_input"),
    (lambda: convert(MODEL, example_input=X, rounds=3), ValueError, "rounds"),
    (lambda: convert(torch.compile(MODEL, backend="eager")), ValueError, "before torch.compile"),
    (lambda: convert(distributed(MODEL)), ValueError, "convert its .module"),
)


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
    (lambda: to_dense(3), TypeError, "nn.Module"),
    (lambda: to_dense(distributed(HOOKED)), ValueError, "convert its .module"),
    (
        lambda: to_dense(nn.Sequential(OwnSparse(2, 3, 5))),
        NotImplementedError,
        "'0': this OwnSparse",
    ),
    (OwnSparse(2, 3, 5).to_dense, NotImplementedError, "this OwnSparse"),
    (PATCHED.to_dense, NotImplementedError, "this Named"),
    (lambda: to_dense(LISTED), ValueError, "Sequential.order"),
    (lambda: to_dense(APPLIED), ValueError, "Sequential.run"),
    (lambda: to_dense(HELD), ValueError, "Sequential.wrapper"),
    (lambda: to_dense(nn.Sequential(HOOKED)), ValueError, "'0' has hooks"),
)
