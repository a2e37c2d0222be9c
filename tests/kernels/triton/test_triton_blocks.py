"""Blocks of channels in Triton: on a GPU, and interpreted where ``test_triton.py`` runs this file.

The interpreter multiplies in float32 where a GPU rounds to TF32.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from any_kernels import (
    check_integers,
    check_layout,
    check_special_input,
    poisoned_memory,  # noqa: F401
)
from block_cases import BlockCase, random_block_case
from engines import Engine, Engines, check, on_gpu
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sparseconv import KernelCSR, SparseConv1d, sparse_conv1d
from sparseconv.ops import gpu_plans
from sparseconv.testing import Case, Tensors, exact_results, expected

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ENGINE = Engine("triton", "cpu" if INTERPRETED else "cuda")
pytestmark = pytest.mark.skipif(
    not INTERPRETED and ENGINE not in on_gpu(),
    reason="no GPU runs Triton (test_triton.py interprets these)",
)
USUAL = {"n": 2, "in_channels": 17, "out_channels": 31, "kernel_size": 5, "length": 19,
         "density": 0.4}  # fmt: skip


@pytest.fixture
def engines() -> Engines:
    return lambda: iter([ENGINE])


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is computed in blocks from here on: a list that grows."""
    from sparseconv.ops.triton import launch

    calls: list[Any] = []
    real = launch._multiplied
    monkeypatch.setattr(launch, "_multiplied", lambda *sizes: calls.append(sizes) or real(*sizes))
    return calls


def check_blocks(case: BlockCase, engines: Engines) -> None:
    tensors = case.tensors()
    wanted = expected(case, tensors)
    if not INTERPRETED:  # tensor cores cut sums off, and float32 operands to 10 bits
        operand = (2**-9 + 2**-20) * (case.dtype == "float32")
        sizes = exact_results(case, Tensors(*(None if t is None else t.abs() for t in tensors)))
        wanted = [e._replace(bound=2 * e.bound + operand * size)
                  for e, size in zip(wanted, sizes, strict=True)]  # fmt: skip
    check(case, engines, wanted)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("seed", range(2))
def test_random_cases_within_the_computed_bound(seed, engines, campaign, count_cases, multiplied):
    rng, cases = random.Random(seed), campaign(3, 100)
    for _ in range(cases):
        check_blocks(random_block_case(rng), engines)
    assert len(multiplied) == 3 * cases
    count_cases(cases)


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    "case",
    [BlockCase(**USUAL | {"n": 1, "length": 1, "padding": 2}),
     BlockCase(1, 47, 16, 3, 515, padding=(0, 2), padding_mode="replicate", density=0.3),
     BlockCase(3, 16, 32, 2, 130, 3, 1, dilation=3, dtype="float16", block=(32, 16)),
     BlockCase(1, 96, 96, 3, 9, dtype="bfloat16", block=(48, 48), density=0.4, seed=3),
     BlockCase(1, 96, 80, 2, 17, dtype="bfloat16", block=(80, 96))],
    ids=["one sample", "chunks", "stride", "the second block first", "large blocks"],
)  # fmt: skip
def test_sizes_about_those_of_tiles(case, engines, count_cases, multiplied):
    check_blocks(case, engines)
    assert len(multiplied) == 3
    count_cases(1)


@pytest.mark.promise("P2")
def test_integers_are_exact(engines, campaign, count_cases):
    rng, counted = random.Random(7), 0
    for _ in range(campaign(2, 30)):
        counted += check_integers(random_block_case(rng, integers=True, dtype="float32"), engines)
    assert counted
    count_cases(counted)


@pytest.mark.promise("P4")
@pytest.mark.parametrize(("mode", "special"), [("zeros", "nan"), ("circular", "inf")])
def test_nan_and_inf_travel_along_active_weights_only(mode, special, engines, count_cases):
    case = BlockCase(**USUAL | {"padding": (2, 1), "padding_mode": mode, "density": 0.2})
    check_special_input(case, float(special), engines, every=1597)
    count_cases(1)


@pytest.mark.promise("P4")
def test_idle_channels_are_not_read(multiplied):
    mask = torch.zeros(33, 40, 3, dtype=torch.bool)
    mask[:16, 16:32, 1] = mask[32:, 32:, 2] = True
    pattern = KernelCSR.from_mask(mask, 16)
    sizes = (2, 40, 9), (pattern.nnz,), (33,)
    x, values, bias = (torch.randn(size, device=ENGINE.device) for size in sizes)
    x[:, :16] = float("nan")
    values[:16] = float("inf")  # of the first output
    y = sparse_conv1d(x, values, pattern, bias, backend="triton")
    assert y[:, 1:].isfinite().all()
    assert y[:, 16:32].equal(bias[16:32, None].expand(2, 16, 7))
    assert len(multiplied) == 1


@pytest.mark.promise("P6")
def test_layout_does_not_change_a_bit(engines, count_cases):
    case = BlockCase(2, 16, 17, 2, 9, padding=1, density=0.5)
    count_cases(check_layout(case, "transposed", engines))


GROUPS = {"groups": 2, "in_channels": 64, "out_channels": 64, "block": (32, 32)}


@pytest.mark.parametrize(
    ("change", "multiplies"),
    [({}, True), ({"dtype": "bfloat16"}, True), ({"dtype": "float64"}, False), (GROUPS, True),
     ({"block": (16, 17)}, False), (GROUPS | {"in_channels": 66}, False)],
    ids=str,
)  # fmt: skip
def test_which_patterns_are_multiplied_in_blocks(change, multiplies):
    from sparseconv.ops.triton import launch

    case = BlockCase(**USUAL | change)
    x = ENGINE.put(case.tensors()).input
    tile = launch._block_tile(x, case.geometry)
    assert (tile is not None) is multiplies
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = launch._block_tile(x, case.geometry)
    assert exact == (None if case.dtype == "float32" else tile)


def test_an_exported_model_keeps_its_blocks(multiplied: list[Any], tmp_path: Path) -> None:
    layer = SparseConv1d(32, 32, 5, block=16, backend="triton", device=ENGINE.device)
    x = torch.randn(2, 32, 9, device=ENGINE.device)
    wanted = layer(x)
    path, blocks = tmp_path / "model.pt2", len(multiplied)
    torch.export.save(torch.export.export(layer, (x,)), path)
    assert torch.export.load(path).module()(x).equal(wanted)
    assert len(multiplied) == 2 * blocks > 0


def plans(arrays: tuple[Tensor, Tensor], case: Case) -> list[Tensor]:
    made = (
        getattr(gpu_plans, f"block_{n}")(*arrays, case.geometry)
        for n in ("places", "fprop", "dgrad", "wgrad")
    )
    return tree_leaves(list(made))


def test_plans_stay_where_they_are_with_any_units_of_this_nnz():
    """A unit of a whole block has the weights of 16 units of a last block with one channel."""
    case = BlockCase(2, 16, 17, 20, 40, padding=3)
    masks = torch.zeros(2, 17, 16, 20, dtype=torch.bool)
    masks[0, :16, :, :4] = True
    masks[1, :16, :, 7:10] = masks[1, 16, :, 2:18] = True
    few, many = (KernelCSR.from_mask(mask, 16) for mask in masks)
    assert few.nnz == many.nnz
    layer = SparseConv1d(16, 17, 20, pattern=few, device=ENGINE.device)
    arrays = layer.crow_indices, layer.col_indices
    places = [t.data_ptr() for t in plans(arrays, case)]
    for pattern in (few, many):
        layer.set_pattern(pattern)
        assert [t.data_ptr() for t in plans(arrays, case)] == places
        found = plans(pattern.on(torch.device(ENGINE.device)), case)
        assert all(map(torch.equal, plans(arrays, case), found))
