"""The CUDA kernels emulated on the CPU; ``test_cuda.py`` runs this file in its own process,
whose only kernels are those of ``emulated.cpp``, compiled under sanitizers.

Each case runs with both kernels, and with threads and blocks in ascending order and copies that
come as late as they may, and in descending order with copies at once. On a GPU ``test_kernels.py``
runs the same kernels.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import torch
from any_kernels import (
    check_integers,
    check_layout,
    check_special_input,
    digest,
    poisoned_memory,  # noqa: F401
    test_empty_row_gives_exactly_the_bias,  # noqa: F401
    test_nothing_to_do,  # noqa: F401
    test_relu_is_that_of_torch,  # noqa: F401
    test_wrong_tensors_are_refused,  # noqa: F401
)
from engines import Engine, check, compute
from layouts import LAYOUTS

from sparseconv import SparseConv1d
from sparseconv.functional import conv, gradients
from sparseconv.ops import cuda, gpu_plans, schemas
from sparseconv.ops.backends import extension
from sparseconv.testing import PATTERNS, Case, random_case

assert extension is None, "run this file through test_cuda.py"

OPS = torch.ops.sparseconv
POSITIONS, ORDER = "EMULATED_POSITIONS", "EMULATED_DESCENDING"

torch.ops.load_library(os.environ["EMULATED_CUDA"])
conv.resolve_backend = lambda *args: "cuda"
for _name in ("fprop", "dgrad", "wgrad"):  # what runs for CUDA tensors elsewhere
    schemas._library.impl(_name, getattr(cuda, _name), "CPU")

gradients._register_gradient("fprop", "cuda")  # elsewhere the extension does this


def supported_case(rng):
    """A random case that the kernels compute."""
    while True:
        case = random_case(rng, stride=1, groups=1)
        geometry = case.geometry
        if case.dtype != "float64" and gpu_plans.cuda_computes(geometry):
            return case


@pytest.fixture
def engines(monkeypatch):
    def switch():
        for positions in ("4", "12", "36"):
            for order in ("", "1"):
                monkeypatch.setenv(POSITIONS, positions)
                monkeypatch.setenv(ORDER, order)
                yield Engine("cuda", isa=f"{positions} {order}")

    return switch


@pytest.mark.parametrize("seed", range(4))
def test_random_cases_within_the_computed_bound(seed, engines, count_cases):
    rng = random.Random(seed)
    for _ in range(25):
        check(supported_case(rng), engines)
    count_cases(25)


# Where a lane, a tile, a chunk of channels, a block's rows or a kernel's bits end; K = 5, and as
# much padding: the series of a batch are 4 positions longer than their outputs.
BOUNDARIES = [
    *(Case(2, 1, 2, 5, length, padding=2) for length in (8, 12, 13, 32, 36, 37, 60)),
    *(Case(1, 1, 2, 3, length, density=0.9) for length in (383, 384, 385, 1152, 1153, 1154, 2400)),
    *(Case(n, 2, 2, 3, 384, density=0.9) for n in (2, 3)),
    *(Case(1, 1, rows, 3, 9, density=0.9) for rows in (7, 8, 9, 16, 17)),
    *(Case(2, channels, 3, 9, 30, density=0.3) for channels in (5, 6, 7, 13, 14, 27)),
    Case(3, 30, 3, 39, 70, padding=(0, 38), padding_mode="replicate", density=0.1),
    Case(40, 2, 3, 5, 5, density=0.5),  # series shorter than a lane
    Case(33, 1, 2, 1, 1, density=0.9),
    Case(2, 2, 3, 14, 60, dilation=3, padding=7, density=0.5),  # 40 samples: all bits
    Case(2, 5, 3, 39, 60, pattern="full"),  # more active weights than a warp has lanes
    Case(2, 5, 3, 40, 60, pattern="full"),
]


def test_every_boundary(engines, count_cases):
    for case in BOUNDARIES:
        check_integers(replace(case, integers=True), engines)
    count_cases(len(BOUNDARIES))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_named_patterns(pattern, engines, count_cases):
    for mode, dilation in (("reflect", 1), ("circular", 2)):
        check(Case(2, 6, 9, 5, 33, 1, (2, 3), dilation, 1, mode, pattern=pattern), engines)
    count_cases(2)


def test_bits_do_not_depend_on_the_kernel_or_on_the_order(engines, count_cases):
    rng = random.Random(7)
    for _ in range(10):
        case = supported_case(rng)
        results = [compute(case, case.tensors(), engine) for engine in engines()]
        for y, dx, _ in results:
            assert y.equal(results[0][0]), case
            assert dx.equal(results[0][1]), case
        for i in range(0, len(results), 2):
            assert digest(results[i][2]) == digest(results[i + 1][2]), case
    count_cases(10)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_does_not_change_a_bit(name, engines, count_cases):
    case = Case(3, 4, 6, 5, 37, 1, (3, 2), 1, 1, "circular", "bfloat16", density=0.5)
    count_cases(check_layout(case, name, engines))


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@pytest.mark.parametrize(("kernel_size", "mode"), [(3, "reflect"), (20, "zeros")])
def test_nan_and_inf_travel_along_active_weights_only(
    special, kernel_size, mode, engines, count_cases
):
    """Also past the zeros between the series, which the gradient of the weights multiplies."""
    case = Case(2, 2, 4, kernel_size, 25, 1, (2, 1), 1, 1, mode, pattern="empty_row")
    check_special_input(case, special, engines, every=13)
    count_cases(1)


def test_wrong_indices_touch_no_memory_outside(engines, monkeypatch, count_cases):
    """The sanitizers watch: nothing is checked on a GPU, since that would have to wait for it."""
    rng, generator = random.Random(3), torch.Generator().manual_seed(0)
    wild = torch.tensor([-(2**31), -1, 0, 1, 7, 100, 2**31 - 1], dtype=torch.int32)

    def spoil(tensor):
        drawn = wild[torch.randint(7, (*tensor.shape, 2), generator=generator)]
        words = drawn if tensor.dtype == torch.int32 else drawn.view(torch.int64)
        return words[..., 0].contiguous()

    def spoilt(plan):
        def call(*args):
            return tuple(map(spoil, plan(*args)))

        return call

    for name in ("cuda_fprop", "cuda_dgrad"):
        monkeypatch.setattr(gpu_plans, name, spoilt(getattr(gpu_plans, name)))
    for _ in range(20):
        case = supported_case(rng)
        for engine in engines():
            compute(case, case.tensors(), engine)
    count_cases(20)


def test_a_layer_trains():
    layer = SparseConv1d(3, 5, 9, padding=4, density=0.3)
    layer(torch.randn(2, 3, 30)).square().sum().backward()  # the gradient of the bias, too
    assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())


def test_what_is_left_to_triton():
    case = Case(2, 4, 6, 3, 20)
    x, values, bias, _ = case.tensors()
    pattern, g = case.make_pattern(), case.geometry
    arrays = pattern.crow_indices, pattern.col_indices
    plan = gpu_plans.cuda_fprop(*arrays, g)
    for other in (g._replace(stride=2), g._replace(groups=2), g._replace(dilation=20)):
        with pytest.raises(NotImplementedError, match="triton"):
            OPS.fprop(x, values, bias, *arrays, other)
        with pytest.raises(NotImplementedError, match="triton"):
            OPS.cuda_fprop(x, values, bias, *plan, other, False)
    with pytest.raises(NotImplementedError, match="Double"):
        OPS.fprop(x.double(), values.double(), None, *arrays, g)
