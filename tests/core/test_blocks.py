"""Patterns in blocks: built, copied, saved and computed like every pattern, or refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from refusals import refusals

from sparseconv import KernelCSR, SparseConv1d, block_mask, prune_filters, sparse_conv1d
from sparseconv.core.blocks import unit_means
from sparseconv.pruning import WHC

SHAPES = [
    ((32, 32, 5), (16, 16)),
    ((37, 20, 4), (16, 16)),
    ((9, 7, 3), (4, 2)),
    ((5, 3, 6), (1, 3)),
]


@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_a_pattern_is_its_units(shape: Any, block: Any) -> None:
    pattern = KernelCSR.random(shape, shape[0] * shape[1], block=block)
    units, mask = pattern.units(), pattern.to_mask()
    for o, c, k in mask.argwhere().tolist():
        assert units.to_mask()[o // block[0], c // block[1], k]
    assert KernelCSR.from_units(units, shape, block) == pattern == KernelCSR.from_mask(mask, block)
    assert units.nnz == round(units.numel / shape[2])
    single = KernelCSR.from_mask(mask)
    assert (single.block, single.units()) == ((1, 1), single)
    assert single != pattern
    assert hash(single) != hash(pattern)
    for same in (copy.deepcopy(pattern), pickle.loads(pickle.dumps(pattern))):
        assert (same, same.block, hash(same)) == (pattern, block, hash(pattern))
    x, values = torch.randn(2, shape[1], 21), torch.randn(pattern.nnz)
    assert sparse_conv1d(x, values, pattern).equal(sparse_conv1d(x, values, single))


@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_means_and_masks_of_units_are_those_of_a_plain_loop(shape: Any, block: Any) -> None:
    weight = torch.randn(shape)
    squares, norms = weight.double().square(), {}
    for i in range(0, shape[0], block[0]):
        for j in range(0, shape[1], block[1]):
            for k in range(shape[2]):
                part = squares[i : i + block[0], j : j + block[1], k]
                norms[i, j, k] = float(part.mean())
    found = unit_means(weight.double().square(), block)
    torch.testing.assert_close(found.flatten(), torch.tensor([*norms.values()]).double())
    chosen = sorted(norms, key=norms.__getitem__)[-round(0.3 * len(norms)) :]
    expected = torch.zeros(shape, dtype=torch.bool)
    for i, j, k in chosen:
        expected[i : i + block[0], j : j + block[1], k] = True
    assert block_mask(weight, 0.3, block=block).equal(expected)


def broken(shape: tuple[int, int, int], *at: int) -> torch.Tensor:
    mask = torch.ones(shape, dtype=torch.bool)
    mask[at] = False
    return mask


W = torch.randn(6, 4, 3)

test_refuses = refusals(
    (lambda: KernelCSR.from_mask(broken((6, 4, 3), 5, 3, 1), 2), ValueError, "2 to 3 to"),
    (lambda: KernelCSR.from_mask(broken((7, 4, 3), 6, 1, 1), (3, 2)), ValueError, "6 to 6 differ"),
    (lambda: KernelCSR.from_mask(W > 0, 5), ValueError, "5 x 5 channels is larger than a weight"),
    (lambda: KernelCSR.from_mask(W > 0, 0), ValueError, "at least 1, but got 0"),
    (lambda: KernelCSR.from_mask(W > 0, 2.0), TypeError, "got 2.0"),
    (lambda: KernelCSR.random((6, 4, 3), 9, block=(2, 2, 2)), TypeError, "a pair (out, in)"),
    (lambda: KernelCSR.from_units(KernelCSR.full((3, 2, 3)), (6, 5, 3), 2), ValueError, "3, 3, 3"),
    (lambda: KernelCSR.from_units(W, (6, 4, 3), 1), ValueError, "but got Tensor"),
    (lambda: block_mask(W, 1.5, block=2), ValueError, "density must lie in [0, 1], but got 1.5"),
    (lambda: block_mask(W[0], 0.5, block=2), ValueError, "unpack"),
    (lambda: block_mask(W, 0.5), ValueError, "a block of 16 x 16 channels is larger"),
    (lambda: SparseConv1d(4, 6, 3, groups=2, block=2), ValueError, "a group of 3 channels"),
    (lambda: SparseConv1d(4, 6, 3, block="2"), TypeError, "block must be an int"),
    (lambda: layer(bias=False).load_state_dict({"weight": broken((37, 20, 4), 1, 0, 0)}),
     RuntimeError, "channels 0 to 15 to output channels 0 to 15 differ"),
    (lambda: SparseConv1d(4, 6, 3, groups=2).set_pattern(KernelCSR.random((6, 2, 3), 9, block=2)),
     ValueError, "a group of 3 channels must consist of whole"),
)  # fmt: skip


def layer(**options: Any) -> SparseConv1d:
    return SparseConv1d(20, 37, 4, block=16, density=0.5, **options)


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda one: pickle.loads(pickle.dumps(one)),
        lambda one: SparseConv1d.from_dense(one.to_dense(), one.pattern.to_mask(), block=16),
        lambda one: (other := layer(), other.load_state_dict(one.state_dict()))[0],
        lambda one: (other := layer(), other.load_state_dict(one.to_dense().state_dict()))[0],
    ],
)
def test_a_layer_keeps_its_block(copied: Callable[[SparseConv1d], SparseConv1d]) -> None:
    one = layer()
    other = copied(one)
    assert other.pattern == one.pattern
    assert other.dense_weight().equal(one.dense_weight())
    assert "block=(16, 16)" in repr(other)
    other.reset_parameters()
    assert other.pattern == one.pattern


def test_a_layer_that_loses_filters_has_single_weights() -> None:
    layers = [SparseConv1d(1, 8, 5, block=(4, 1)), SparseConv1d(8, 8, 5, block=4)]
    layers += [SparseConv1d(8, 8, 5, block=4)]
    model = torch.nn.Sequential(*layers)
    pruned, _ = prune_filters(model, torch.zeros(1, 1, 50), WHC(), fraction=0.25, ignore=["2"])
    assert [layer.pattern.block for layer in pruned] == [(1, 1), (1, 1), (4, 4)]
