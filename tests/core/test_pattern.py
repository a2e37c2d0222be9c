"""KernelCSR holds a valid, immutable set of active weights, or refuses."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refusals

from sparseconv import KernelCSR, sparse_conv1d
from sparseconv.testing import PATTERNS, Case


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


MASK = torch.ones(2, 2, 2, dtype=torch.bool)
ONE_WEIGHT = int32(0, 1), int32(0)


def case(pattern: str) -> Case:
    return Case(1, 4, 6, 7, 20, pattern=pattern, density=0.4, seed=3)


@pytest.mark.parametrize("name", PATTERNS)
def test_mask_round_trip(name, count_cases):
    pattern = case(name).make_pattern()
    mask = pattern.to_mask()
    rows = [row.nonzero().flatten().tolist() for row in mask.flatten(0, 1)]
    assert pattern.col_indices.tolist() == [tap for row in rows for tap in row]
    assert pattern.crow_indices.diff().tolist() == [len(row) for row in rows]
    assert pattern.nnz == int(mask.sum())
    assert pattern.numel == mask.numel()
    assert pattern.density == pattern.nnz / pattern.numel
    assert KernelCSR.from_mask(mask) == pattern
    assert KernelCSR.from_mask(mask.transpose(0, 2)).to_mask().equal(mask.transpose(0, 2))
    assert KernelCSR.from_positions(pattern.positions(), pattern.shape) == pattern
    assert KernelCSR(pattern.crow_indices, pattern.col_indices, pattern.shape) == pattern
    assert pattern.crow_indices.dtype == pattern.col_indices.dtype == torch.int32
    count_cases(1)


def test_full_and_random():
    assert KernelCSR.full((2, 3, 4)).to_mask().all()
    from_numpy = KernelCSR.random(tuple(np.arange(2, 5)), np.int64(24))
    assert from_numpy == KernelCSR.full((2, 3, 4))
    assert list(map(type, from_numpy.shape)) == [int] * 3
    assert KernelCSR.random((2, 3, 4), 0).nnz == 0
    torch.manual_seed(5)
    first = KernelCSR.random((8, 4, 9), 50)
    torch.manual_seed(5)
    assert KernelCSR.random((8, 4, 9), 50) == first
    generators = (torch.Generator().manual_seed(6) for _ in range(2))
    a, b = (KernelCSR.random((8, 4, 9), 50, generator=g) for g in generators)
    assert a == b != first
    drawn = sum(KernelCSR.random((3, 2, 4), 6).to_mask().int() for _ in range(400))
    # 400 draws of a quarter of the weights: mean 100, standard deviation 8.7.
    assert (drawn - 100).abs().max() < 5 * 8.7


def made_of(*crow: int, col: tuple[int, ...]) -> KernelCSR:
    """Two output and two input channels, three taps."""
    return KernelCSR(int32(*crow), int32(*col), (2, 2, 3))


def of_arrays(crow: Any = ONE_WEIGHT[0], col: Any = ONE_WEIGHT[1]) -> KernelCSR:
    return KernelCSR(crow, col, (1, 1, 2))


def at(*positions: int, like: torch.dtype = torch.int64) -> KernelCSR:
    return KernelCSR.from_positions(torch.tensor(positions, dtype=like), (2, 1, 3))


test_refuses = pytest.mark.promise("P5")(refusals(
    (lambda: made_of(0, 2, 3, 3, 4, col=(1, 0, 2, 1)), ValueError, "ascend without repetition"),
    (lambda: made_of(0, 2, 4, 4, 4, col=(0, 2, 1, 1)), ValueError, "row 1 (output channel 0, in"),
    (lambda: made_of(0, 1, 1, 2, 3, col=(0, 3, 1)), ValueError, "[0, 3) and ascend"),
    (lambda: made_of(0, 1, 1, 1, 2, col=(0, -1)), ValueError, "but got [-1]"),
    (lambda: made_of(0, 2, 1, 2, 2, col=(0, 1)), ValueError, "never decrease"),
    (lambda: made_of(1, 1, 2, 2, 2, col=(0, 1)), ValueError, "entries that start at 0"),
    (lambda: made_of(0, 1, 2, 2, 3, col=(0, 1)), ValueError, "end at 2 (the number of"),
    (lambda: made_of(0, 1, 2, 2, col=(0, 1)), ValueError, "must have 5 entries"),
    (lambda: of_arrays(torch.tensor([0, 1])), TypeError, "but got torch.int64 of shape [2]"),
    (lambda: of_arrays(col=int32(0)[None]), TypeError, "must be a one-dimensional tensor"),
    (lambda: of_arrays(col=int32(0).to("meta")), TypeError, "must be a dense tensor with data"),
    (lambda: KernelCSR.full((1 << 11, 1 << 10, 1 << 10)), ValueError, "2**31"),
    (lambda: KernelCSR(int32(0), int32(), (1, 0, 3)), ValueError, "positive"),
    (lambda: KernelCSR.full((1, 2, 3.0)), TypeError, "three ints"),
    (lambda: KernelCSR.full(None), TypeError, "but got None"),
    (lambda: at(0, 2, 2), ValueError, "tensor([0, 2, 2])"),
    (lambda: at(0, 3, 1), ValueError, "tensor([0, 3, 1])"),
    (lambda: at(0, 6), ValueError, "from 0 to 5"),
    (lambda: at(-1, 0), ValueError, "tensor([-1,  0])"),
    (lambda: at(0, like=torch.float32), TypeError, "dtype torch.int64"),
    (lambda: KernelCSR.from_positions([0], (2, 1, 3)), TypeError, "use torch.as_tensor(positions"),
    (lambda: KernelCSR.from_mask(MASK.float()), TypeError, "weight != 0"),
    (lambda: KernelCSR.from_mask(MASK.numpy()), TypeError, "use `torch.as_tensor(weight) != 0`"),
    (lambda: KernelCSR.from_mask(MASK[0]), TypeError, "three ints"),
    (lambda: KernelCSR.from_mask(MASK.to("meta")), TypeError, "mask must be a dense tensor"),
    (lambda: KernelCSR.random((1, 2, 3), 2.0), TypeError, "nnz must be an int"),
    (lambda: KernelCSR.random((1, 2, 3), -1), ValueError, "[0, 6]"),
    (lambda: KernelCSR.random((1, 2, 3), 7), ValueError, "[0, 6]"),
))  # fmt: skip


def test_equality_and_hash():
    a, b = (case("random").make_pattern() for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    assert len({a, b}) == 1
    other = case("empty_row").make_pattern()
    assert a != other
    assert hash(a) != hash(other)
    reshaped = KernelCSR.from_positions(a.positions(), (a.shape[0] * 2, 2, a.shape[2]))
    assert a != reshaped
    assert (a == "pattern") is False


def kernels(pattern: KernelCSR) -> list[int]:
    return pattern.crow_indices.diff().tolist()


def test_copies():
    pattern = case("random").make_pattern()
    plan = pattern.cached(kernels)
    loaded = pickle.loads(pickle.dumps(pattern))
    assert loaded == pattern
    assert hash(loaded) == hash(pattern)
    assert plan is pattern.cached(kernels)
    assert plan is not loaded.cached(kernels), "plans are not pickled"
    assert copy.deepcopy(pattern) is pattern
    assert copy.copy(pattern) is pattern


def test_immutable():
    for name in ("shape", "crow_indices", "new"):
        with pytest.raises(AttributeError, match=name):
            setattr(KernelCSR.full((1, 1, 3)), name, None)


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("col_indices", lambda taps: taps.fill_(2)),
        ("col_indices", lambda taps: taps.resize_(0)),
        ("crow_indices", lambda pointers: pointers.zero_()),
    ],
    ids=["taps", "fewer taps", "pointers"],
)
def test_a_change_in_place_behind_a_convolution_is_seen(name, change):
    """Its plans are made once; forward and backward must not use two patterns."""
    arrays = int32(0, 1), int32(0)
    pattern = KernelCSR(*arrays, (1, 1, 3))
    arrays[0][1] = arrays[1][0] = 2
    assert pattern.to_mask().tolist() == [[[True, False, False]]], "it owns its arrays"
    x = torch.arange(1.0, 8).view(1, 1, 7).requires_grad_()
    y = sparse_conv1d(x, torch.ones(1), pattern)
    change(getattr(pattern, name))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_made_in_inference_mode_and_under_another_default_device():
    with torch.inference_mode(), torch.device("meta"):
        pattern = KernelCSR.random((4, 2, 3), 10)
        assert pattern.to_mask().sum() == 10
    assert pattern.col_indices.device.type == "cpu"
    assert not pattern.col_indices.is_inference()
