"""What the ops refuse, on both sides of a limit: the last good argument, the first bad one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_arguments import GEOMETRIES, arguments
from refusals import refuses

OPS = torch.ops.sparseconv
MOST = 2**31 - 1
WORDS = r"expected|must|storage|sparse|invalid|support"
ARGUMENTS = arguments(GEOMETRIES[0])  # (4, 3, 5), 20 samples


# Where each op takes the geometry; crow and col indices come before it.
OPS_OF_PATTERNS = [("fprop", 5), ("dgrad", 4), ("wgrad", 4)]


def call(op: str, at: int, value: Any, device: str = "cpu") -> Any:
    args = list(ARGUMENTS[op])
    args[at] = value
    return getattr(OPS, op)(*(a.to(device) if isinstance(a, torch.Tensor) else a for a in args))


@pytest.mark.promise("P5")
@pytest.mark.parametrize(("op", "at"), OPS_OF_PATTERNS)
def test_geometry(op: str, at: int, count_cases: Any) -> None:
    numbers, cases = ARGUMENTS[op][at], 0

    def refused(fragment: str, wrong: list[int]) -> None:
        nonlocal cases
        cases += 1
        refuses(lambda: call(op, at, wrong), ValueError, fragment)

    for bad in (-1, 0, 2**31, 2**62):
        for i in (0, 1, 2, 3, 6, 7):  # shape, stride, dilation, groups
            refused("[1, 2**31)", [*numbers[:i], bad, *numbers[i + 1 :]])
    for bad in (-1, 2**31, 2**62):
        for i in (4, 5):
            refused("padding", [*numbers[:i], bad, *numbers[i + 1 :]])
    for bad in (-1, 4, 2**31, 2**32, -(2**62)):
        refused("padding_mode", [*numbers[:8], bad, 1, 1])
    for wrong in ([], numbers[:-1], [*numbers, 1]):
        refused("geometry", wrong)
    refused("groups", [*numbers[:7], 3, 0, 1, 1])
    refused("2**31", [2**10, 2**10, 2**11, *numbers[3:]])
    with pytest.raises(ValueError, match="crow_indices of shape"):  # the last good size
        call(op, at, [2**10, 2**10, 2**11 - 1, *numbers[3:]])
    count_cases(cases)


@pytest.mark.promise("P5")
@pytest.mark.parametrize(("op", "at"), OPS_OF_PATTERNS)
def test_pattern(op: str, at: int, count_cases: Any) -> None:
    crow, col = ARGUMENTS[op][at - 2 : at]
    for i in range(len(crow)):
        for bad in (-1, len(col) + 1, MOST):
            wrong = crow.clone()
            wrong[i] = bad
            refuses(lambda w=wrong: call(op, at - 2, w), ValueError, "crow_indices")
    for i in range(len(col)):
        for bad in (-1, 5, MOST):
            wrong = col.clone()
            wrong[i] = bad
            refuses(lambda w=wrong: call(op, at - 1, w), ValueError, "col_indices")
    for i in (at - 2, at - 1):
        for wrong in (ARGUMENTS[op][i].long(), torch.stack([ARGUMENTS[op][i]] * 2, 1)[:, 0]):
            refuses(lambda i=i, w=wrong: call(op, i, w), TypeError, "int32")
    count_cases(3 * (len(crow) + len(col)) + 4)


@pytest.mark.promise("P5")
def test_lengths() -> None:
    x, grad = torch.randn(2, 3, 4), torch.randn(2, 4, 1)
    refuses(lambda: call("fprop", 0, x), ValueError, "Kernel size")
    refuses(lambda: call("fprop", 0, x[..., :0]), ValueError, "at least one sample")
    for at, wrong, said in ((0, x, "Kernel size"), (1, x[0, 0], "values"), (5, [4], "geometry")):
        refuses(lambda i=at, w=wrong: call("fprop", i, w, "meta"), ValueError, said)
    refuses(lambda: call("wgrad", 1, x), ValueError, "Kernel size")
    refuses(lambda: call("dgrad", 5, 4), ValueError, "Kernel size")
    refuses(lambda: call("dgrad", 5, 19), ValueError, "for an input of length 19")
    refuses(lambda: call("wgrad", 0, grad), ValueError, "for an input of length 20")
    for mode, room in ((2, 19), (3, 20)):  # reflect and circular, of 20 samples
        wide = [4, 3, 5, 1, room, 0, 1, 1, mode, 1, 1]
        assert call("fprop", 5, wide).shape == (2, 4, 16 + room)
        wide[4] += 1
        refuses(lambda w=wide: call("fprop", 5, w), ValueError, str(room))
    crow, col = torch.tensor([0, 1], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    for left, right in ((MOST, 0), (0, MOST)):  # the largest padding, stride and dilation
        numbers = [1, 1, 1, MOST, left, right, MOST, 1, 0, 1, 1]
        y = OPS.fprop(torch.ones(1, 1, 3), torch.ones(1), None, crow, col, numbers)
        assert y.tolist() == [[[float(right > 0), float(left > 0)]]]


@pytest.mark.promise("P5")
@pytest.mark.parametrize("op", ARGUMENTS)
def test_tensors(op: str, count_cases: Any) -> None:
    """Another dtype, rank or size, and tensors that have a shape but no memory."""
    wanted, cases = getattr(OPS, op)(*ARGUMENTS[op]), 0
    for at, value in enumerate(ARGUMENTS[op]):
        if not isinstance(value, torch.Tensor):
            continue
        cut, short = value.clone(), value.clone()
        cut.untyped_storage().resize_(0)
        short.untyped_storage().resize_(value.nbytes - 1)
        wrong = [cut, short, value.to_sparse(), value.to(torch.complex64), value[None, None]]
        wrong += [value[:-1]] if at else []  # a batch may be smaller
        for bad in wrong:
            with pytest.raises((ValueError, TypeError, RuntimeError), match=WORDS):
                call(op, at, bad)
        cases += len(wrong)
    assert getattr(OPS, op)(*ARGUMENTS[op]).equal(wanted), "the next call computes as before"
    count_cases(cases)
