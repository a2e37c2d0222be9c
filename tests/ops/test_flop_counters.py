"""FLOP counters: what they show of a sparse convolution."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sparseconv as sc


def make_model() -> tuple[nn.Sequential, Tensor, int, int]:
    """A model, an input, and the active multiply-adds of its sparse and dense layer."""
    torch.manual_seed(0)
    sparse = sc.SparseConv1d(3, 6, 5, padding=2, density=0.3)
    model = nn.Sequential(sparse, nn.ReLU(), nn.Conv1d(6, 2, 3, bias=False))
    return model, torch.randn(4, 3, 20), sparse.pattern.nnz * 4 * 20, 6 * 2 * 3 * 4 * 18


@pytest.mark.tool("FlopCounterMode", "works", "active FLOPs, forward and backward, by module")
def test_flop_counter_mode() -> None:
    model, x, sparse, dense = make_model()
    with FlopCounterMode(display=False) as counter:
        y = model(x)
        forward = counter.get_flop_counts()
        y.sum().backward()
    assert sum(forward["Sequential.0"].values()) == 2 * sparse
    assert sum(forward["Global"].values()) == 2 * (sparse + dense)
    # The input needs no gradient, so the first layer has no dgrad. No bias gradient is counted.
    assert counter.get_total_flops() == 2 * (2 * sparse + 3 * dense)


@pytest.mark.tool("thop", "works", "custom_ops={sc.SparseConv1d: a hook of one line}")
def test_thop() -> None:
    thop = pytest.importorskip("thop")
    model, x, sparse, dense = make_model()

    def count(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        layer.total_ops += layer.pattern.nnz * output.shape[0] * output.shape[-1]

    hooks = {sc.SparseConv1d: count}
    macs, parameters = thop.profile(copy.deepcopy(model), (x,), hooks, verbose=False)
    assert macs == sparse + dense
    assert parameters == model[0].pattern.nnz + 6 + 36
    unhooked, _ = thop.profile(model, (x,), verbose=False)
    assert unhooked == dense, "without the hook it takes a layer that it does not know for nothing"


@pytest.mark.tool("fvcore", "works", 'set_op_handle("sparseconv::fprop", a handle of two lines)')
def test_fvcore() -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    model, x, sparse, dense = make_model()

    def handle(inputs: Any, outputs: Any) -> int:
        (nnz,), (n, _, length) = (v.type().sizes() for v in (inputs[1], outputs[0]))
        return nnz * n * length

    analysis = fvcore.FlopCountAnalysis(model, x).set_op_handle("sparseconv::fprop", handle)
    analysis.unsupported_ops_warnings(False).tracer_warnings("none")
    assert analysis.by_module() == {"": sparse + dense, "0": sparse, "1": 0, "2": dense}
