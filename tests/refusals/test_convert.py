"""What ``sc.convert``, ``sc.to_dense`` and ``sc.profile`` refuse."""

from __future__ import annotations

import torch
from layers import Function
from refusals import refusals
from torch import Tensor, nn

from sparseconv import SparseConv1d, convert, profile, to_dense

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
    (lambda: convert(torch.jit.trace(nn.ReLU(), X)), ValueError, "nn.Conv1d"),
    (lambda: convert(MODEL, max_density=13), ValueError, "max_density"),
    (lambda: convert(MODEL, block="16"), TypeError, "block"),
    (lambda: convert(MODEL, block=(8,)), TypeError, "a pair (out, in)"),
    (lambda: convert(MODEL, masks={"0": X / 3}), ValueError, "'0'"),
    (lambda: convert(MODEL, layers=["1"]), ValueError, "layers"),
    (lambda: convert(MODEL, masks={"0": X > 0}), ValueError, "(4, 3, 9)"),
    (lambda: convert(MODEL, example_input=[X]), TypeError, "conv1d()"),
    (lambda: convert(MODEL, example_input=X, rounds=3), ValueError, "rounds"),
    (lambda: convert(torch.compile(MODEL, backend="eager")), ValueError, "torch.compile"),
    (lambda: convert(distributed(MODEL)), ValueError, ".module"),
)


class Named(SparseConv1d):
    name = "it runs the same code"


class OwnSparse(Named):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


HOOKED = Named(2, 3, 5)
HOOKED.register_forward_hook(lambda *_: None)

LISTED = nn.Sequential(Named(2, 3, 5), nn.ReLU())
LISTED.order = [*LISTED]

PATCHED = Named(2, 3, 5)
PATCHED.forward = PATCHED.dense_weight

test_to_dense = refusals(
    (lambda: to_dense(nn.Sequential(OwnSparse(2, 3, 5))), NotImplementedError, "'0'"),
    (OwnSparse(2, 3, 5).to_dense, NotImplementedError, "this OwnSparse"),
    (PATCHED.to_dense, NotImplementedError, "this Named"),
    (lambda: to_dense(LISTED), ValueError, "Sequential.order"),
    (lambda: to_dense(nn.Sequential(HOOKED)), ValueError, "'0' has hooks"),
)


LAYER = SparseConv1d(3, 4, 5)
META = SparseConv1d(3, 4, 5, device="meta")

test_profile = refusals(
    (lambda: profile(nn.Conv1d(3, 4, 5), X), ValueError, "a SparseConv1d"),
    (lambda: profile(LAYER, [X]), TypeError, "input must be a Tensor"),
    (lambda: profile(Function(lambda x, conv: x, LAYER), X), ValueError, "(layers.0)"),
    (lambda: profile(META, X), NotImplementedError, "on meta"),
    (lambda: profile(nn.Sequential(OwnSparse(3, 4, 5)), X), NotImplementedError, "this OwnSparse"),
    (lambda: profile(LAYER, X, rounds=5), ValueError, "rounds"),
)
