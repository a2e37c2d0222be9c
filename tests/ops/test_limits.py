"""Every check of the ops, on both sides of its limit: the last good argument, the first bad one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import sparseconv as sc

OPS = torch.ops.sparseconv
MOST = 2**31 - 1
PATTERN = sc.KernelCSR.from_mask(torch.tensor([[[1, 0, 1], [0, 1, 1]], [[1, 1, 1], [1, 0, 0]]]) > 0)
CROW, COL, NNZ = PATTERN.crow_indices, PATTERN.col_indices, PATTERN.nnz
LENGTH, BATCH = 9, 2
MODES = {"zeros": 0, "replicate": 1, "reflect": 2, "circular": 3}


def geometry(
    shape: Sequence[int] = (2, 2, 3), stride: int = 1, padding: Sequence[int] = (0, 0),
    dilation: int = 1, groups: int = 1, mode: int = 0,
) -> list[int]:  # fmt: skip
    return [*shape, stride, *padding, dilation, groups, mode]


ROWS = OPS.plan_fprop(CROW, COL, geometry())
WGRAD_ROWS, BATCHES = OPS.plan_wgrad(CROW, COL, geometry())
POINTERS, TRANSPOSED_ROWS, INDEX = OPS.plan_dgrad(CROW, COL, geometry())
OUT = LENGTH - 2
# By the names of the schemas.
GOOD: dict[str, dict[str, Any]] = {
    "plan_fprop": {"crow_indices": CROW, "col_indices": COL, "geometry": geometry()},
    "plan_dgrad": {"crow_indices": CROW, "col_indices": COL, "geometry": geometry()},
    "plan_wgrad": {"crow_indices": CROW, "col_indices": COL, "geometry": geometry()},
    "fprop": {
        "input": torch.randn(BATCH, 2, LENGTH), "values": torch.randn(NNZ),
        "bias": torch.randn(2), "crow_indices": CROW, "rows": ROWS, "geometry": geometry(),
    },
    "dgrad": {
        "grad_output": torch.randn(BATCH, 2, OUT), "values": torch.randn(NNZ),
        "pointers": POINTERS, "rows": TRANSPOSED_ROWS, "index": INDEX, "input_length": LENGTH,
        "geometry": geometry(),
    },
    "wgrad": {
        "grad_output": torch.randn(BATCH, 2, OUT), "input": torch.randn(BATCH, 2, LENGTH),
        "crow_indices": CROW, "rows": WGRAD_ROWS, "geometry": geometry(), "batches": BATCHES,
    },
}  # fmt: skip
COMPUTING, PLANNING = ("fprop", "dgrad", "wgrad"), ("plan_fprop", "plan_dgrad", "plan_wgrad")


def call(op: str, **changes: Any) -> Any:
    return getattr(OPS, op)(**(GOOD[op] | changes))


def refused(op: str, error: type[Exception], message: str, **changes: Any) -> None:
    with pytest.raises(error, match=message):
        call(op, **changes)


@pytest.mark.promise("P5")
@pytest.mark.parametrize("op", GOOD)
def test_sizes(op: str, count_cases: Any) -> None:
    call(op)
    range_ = r"must be in \[1, 2\*\*31\)"
    for bad in (-1, 0, 2**31, 2**62):
        for i in (0, 1, 2, 3, 6, 7):  # shape, stride, dilation, groups
            wrong = geometry()
            wrong[i] = bad
            refused(op, ValueError, range_, geometry=wrong)
        count_cases(6)
    for wrong in ([], geometry()[:-1], [*geometry(), 1]):
        refused(op, ValueError, r"expected geometry \[C_out", geometry=wrong)
    # Just below 2**31 weights is a size like any other; the arrays do not fit it.
    for good, bad in (
        ([MOST, 1, 1], [2**16, 2**15, 1]),
        ([2**16 - 1, 2**15, 1], [2**15, 2**16, 1]),
        ([2**10, 2**10, 2**11 - 1], [2**10, 2**10, 2**11]),
        ([1, 2**10, 2**21 - 1], [1, 2**10, 2**21]),
    ):
        refused(op, ValueError, r"K must be below 2\*\*31", geometry=geometry(shape=bad))
        with pytest.raises((ValueError, TypeError)) as error:
            call(op, geometry=geometry(shape=good))
        assert "2**31" not in str(error.value)
        count_cases(2)


@pytest.mark.promise("P5")
@pytest.mark.parametrize("op", COMPUTING)
def test_paddings_and_groups(op: str, count_cases: Any) -> None:
    for bad in (-1, 2**31, 2**62):
        for padding in ([bad, 0], [0, bad]):
            wrong = geometry(padding=padding)
            refused(op, ValueError, r"padding must be in \[0, 2\*\*31\)", geometry=wrong)
    wrong = geometry(groups=3)
    refused(op, ValueError, "out_channels must be divisible by groups", geometry=wrong)
    for mode in (-1, 4, 2**31, 2**32, -(2**62)):
        wrong = geometry(mode=mode)
        refused(op, ValueError, r"padding_mode must be 0 \(zeros\)", geometry=wrong)
    count_cases(12)


@pytest.mark.promise("P5")
def test_the_largest_padding_stride_and_dilation_compute() -> None:
    x, values = torch.randn(1, 1, 3), torch.randn(1)
    crow, rows = torch.tensor([0, 1], dtype=torch.int32), torch.zeros(5, dtype=torch.int32)
    for padding in ([MOST, 0], [0, MOST]):
        y = OPS.fprop(x, values, None, crow, rows, [1, 1, 1, MOST, *padding, MOST, 1, 0])
        wanted = [0.0, 0.0]
        if padding[0] == 0:
            wanted[0] = float(x[0, 0, 0] * values)
        else:
            wanted[1] = float(x[0, 0, 0] * values)
        assert y.tolist() == [[wanted]]


@pytest.mark.promise("P5")
@pytest.mark.parametrize("op", COMPUTING)
def test_lengths(op: str, count_cases: Any) -> None:
    def with_length(length: int, left: int, right: int, mode: str = "zeros") -> Any:
        out = max(0, length + left + right - 2)
        padded = geometry(padding=(left, right), mode=MODES[mode])
        changes: dict[str, Any] = {"geometry": padded}
        if op != "fprop":
            changes["grad_output"] = torch.randn(BATCH, 2, out)
        if op == "dgrad":
            changes["input_length"] = length
        else:
            changes["input"] = torch.randn(BATCH, 2, length)
        return lambda: call(op, **changes)

    too_small, too_wide = "Kernel size can't be greater", "Padding size should be at most"
    if op == "fprop":  # too long for any memory, but for views like this one
        for length in (2**62, 2**62 + 1):
            x, values = torch.empty(1).expand(1, 1, length), torch.randn(1, 1)
            with pytest.raises(ValueError, match="of shape" if length == 2**62 else "least one"):
                call(op, input=x, values=values, geometry=geometry(shape=[1, 1, 1]))
    refusals: list[tuple[Callable[[], Any], str]] = [
        (with_length(2, 0, 0), too_small),
        (with_length(1, 1, 0), too_small),
        (with_length(1, 0, 1), too_small),
        (with_length(0, 5, 5), "at least one sample"),
    ]
    good = [with_length(3, 0, 0), with_length(1, 1, 1), with_length(1, 2, 0), with_length(1, 0, 2)]
    for length in (1, 4):
        for mode, room in (("circular", length), ("reflect", length - 1)):
            for at in range(2):
                widest, wider = [3, 3], [3, 3]
                widest[at], widest[1 - at] = room, min(room, 2)
                wider[at], wider[1 - at] = room + 1, room
                if length + sum(widest) >= 3:
                    good.append(with_length(length, *widest, mode))
                refusals.append((with_length(length, *wider, mode), f"{too_wide} {room} "))
        good.append(with_length(length, 7, 7, "replicate"))
    for accepted in good:
        accepted()
    for wrong, message in refusals:
        with pytest.raises(ValueError, match=message):
            wrong()
    count_cases(len(good) + len(refusals))


TENSORS = [(op, name) for op in GOOD for name, v in GOOD[op].items() if isinstance(v, torch.Tensor)]


@pytest.mark.promise("P5")
@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_tensors(op: str, name: str, count_cases: Any) -> None:
    tensor = GOOD[op][name]
    integer = tensor.dtype == torch.int32
    other = torch.int64 if integer else torch.float64
    # Some ops take the number of weights or a dtype from an argument; the others do not fit it.
    with pytest.raises(TypeError, match="expected "):
        call(op, **{name: tensor.to(other)})
    with pytest.raises((TypeError, NotImplementedError)):
        call(op, **{name: tensor.to_sparse()})
    rank = {1: r"of shape \(", 3: r"of shape \(N, "}[tensor.dim()]
    refused(op, ValueError, rank, **{name: tensor.unsqueeze(0)})
    if tensor.dim() == 1:
        refused(op, ValueError, r"shape \(|to rise", **{name: tensor[:-1]})
        refused(op, ValueError, r"shape \(|to rise", **{name: torch.cat([tensor, tensor[-1:]])})
    else:
        refused(op, ValueError, "of shape", **{name: tensor[:, :1]})
        refused(op, ValueError, "of shape", **{name: torch.cat([tensor, tensor], 1)})
    if integer:
        strided = torch.stack([tensor, tensor], 1)[:, 0]
        refused(op, TypeError, "contiguous int32", **{name: strided})
    count_cases(5)


def poisoned(tensor: torch.Tensor, at: int, value: int) -> torch.Tensor:
    changed = tensor.clone()
    changed[at] = value
    return changed


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("op", "name", "limit"),
    [
        ("plan_fprop", "col_indices", 3),
        ("plan_dgrad", "col_indices", 3),
        ("fprop", "rows", int(ROWS.max()) + 1),
        ("wgrad", "rows", int(WGRAD_ROWS.max()) + 1),
        ("dgrad", "rows", int(TRANSPOSED_ROWS.max()) + 1),
        ("dgrad", "index", NNZ),
    ],
)
def test_indices(op: str, name: str, limit: int, count_cases: Any) -> None:
    good = GOOD[op][name]
    for at in range(NNZ):
        call(op, **{name: poisoned(good, at, limit - 1)})
        call(op, **{name: poisoned(good, at, 0)})
        for bad in (-1, limit, MOST, -(2**31)):
            wrong = poisoned(good, at, bad)
            refused(op, ValueError, rf"{name} in \[0, {limit}\)", **{name: wrong})
        count_cases(6)


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("op", "name"),
    [("plan_fprop", "crow_indices"), ("plan_dgrad", "crow_indices"), ("fprop", "crow_indices"),
     ("wgrad", "crow_indices"), ("dgrad", "pointers")],
)  # fmt: skip
def test_pointers(op: str, name: str, count_cases: Any) -> None:
    good = GOOD[op][name]
    says = f"expected {name} to rise from 0 to nnz = {NNZ} "
    for at in range(len(good)):
        refused(op, ValueError, says, **{name: poisoned(good, at, -1)})
        refused(op, ValueError, says, **{name: poisoned(good, at, NNZ + 1)})
        if at in (0, len(good) - 1):
            refused(op, ValueError, says, **{name: poisoned(good, at, int(good[at]) - 1)})
            refused(op, ValueError, says, **{name: poisoned(good, at, int(good[at]) + 1)})
        else:
            refused(op, ValueError, says, **{name: poisoned(good, at, int(good[at - 1]) - 1)})
            refused(op, ValueError, says, **{name: poisoned(good, at, int(good[at + 1]) + 1)})
            call(op, **{name: poisoned(good, at, int(good[at - 1]))})
            call(op, **{name: poisoned(good, at, int(good[at + 1]))})
        count_cases(4)


@pytest.mark.promise("P5")
def test_batches(count_cases: Any) -> None:
    """Where blocks begin (one block, space for two), then (row, first entry, weights)."""
    assert BATCHES.tolist() == [0, 2, 0, 0, 0, 4, 1, 4, 4, *18 * [0]]
    wrong = [(0, 1), (0, -1), (1, 3), (1, NNZ + 1), (1, -1), (3, -1), (3, 2), (4, -1), (4, NNZ - 3)]
    for at, value in (*wrong, (5, 0), (5, 13), (5, -1), (8, 5), (7, MOST), (8, -(2**31))):
        says = "batches that plan_wgrad made"
        refused("wgrad", ValueError, says, batches=poisoned(BATCHES, at, value))
        count_cases(1)
    turned = torch.cat([BATCHES[:3], BATCHES[6:9], BATCHES[3:6], BATCHES[9:]])  # rows fall
    refused("wgrad", ValueError, says, batches=turned)
    refused("wgrad", TypeError, "batches to be a tensor", batches=None)


@pytest.mark.promise("P5")
def test_phases() -> None:
    """A stride that makes 2**31 pointers or more is refused before they are made."""
    for op, args in (("plan_dgrad", {}), ("dgrad", {"input_length": 3})):
        changes: dict[str, Any] = {"geometry": geometry(stride=2**29), **args}
        if op == "dgrad":
            changes["grad_output"] = torch.randn(BATCH, 2, 1)
        refused(op, ValueError, r"stride x kernels must be below 2\*\*31", **changes)
    # One less is a stride like any other: only the pointers do not fit it.
    changes = {
        "geometry": geometry(stride=2**29 - 1), "input_length": 3,
        "grad_output": torch.randn(BATCH, 2, 1),
    }  # fmt: skip
    refused("dgrad", ValueError, rf"pointers of shape \({4 * (2**29 - 1) + 1},\)", **changes)
