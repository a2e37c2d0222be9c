"""The kernels: accurate, exact on integers, reproducible, in every memory layout, on every ISA.

Each test runs all instruction sets of this machine, and all backends of its GPU. Fresh memory is
filled with NaN throughout, so an element that no kernel wrote shows.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from any_kernels import (
    MODES,
    check_integers,
    check_layout,
    check_special_input,
    digest,
    marked,
    poisoned_memory,  # noqa: F401
    test_empty_row_gives_exactly_the_bias,  # noqa: F401
    test_multiply_add_rounds_once,  # noqa: F401
    test_nothing_to_do,  # noqa: F401
    test_relu_is_that_of_torch,  # noqa: F401
    test_wrong_tensors_are_refused,  # noqa: F401
)
from engines import NAMES, check, compute
from layouts import LAYOUTS

from benchmarks.bench.cases import CASES
from sparseconv import sparse_conv1d
from sparseconv.measure.machine import threads
from sparseconv.testing import PATTERNS, Case, Tensors, exact_results, random_case

DSN_LIKE = Case(2, 2, 3, 39, 130, padding=(0, 38), padding_mode="replicate", pattern="dsn_evolved")


@pytest.mark.promise("P1")
@pytest.mark.parametrize("seed", range(40))
def test_random_cases_within_the_computed_bound(seed, engines, campaign, count_cases):
    rng, counted = random.Random(seed), 0
    while counted < campaign(20, 5000):
        case = random_case(rng)
        check(case, engines)
        counted += case.n > 0 and case.make_pattern().nnz > 0  # others compute nothing
    count_cases(counted)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_every_length_and_batch_about_the_vector_widths(dtype, engines, count_cases):
    for length in range(1, 70 if dtype in ("float32", "bfloat16") else 36):
        case = replace(DSN_LIKE, length=length, dtype=dtype, seed=length)
        check(case, engines)
        if length % 2:  # each output length once
            check(replace(case, stride=2, padding=19, padding_mode="zeros"), engines)
        count_cases(1 + length % 2)
    for n in range(1, 35):  # the lanes of a vector are series, or pieces of them
        check(Case(n, 2, 3, 5, 9, padding=2, dtype=dtype, seed=n), engines)
        count_cases(1)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_named_patterns(pattern, engines, count_cases):
    for mode in MODES:
        for stride, dilation, groups in ((1, 1, 1), (2, 1, 3), (1, 3, 1), (3, 2, 3)):
            check(
                Case(3, 6, 9, 5, 33, stride, (2, 3), dilation, groups, mode, pattern=pattern),
                engines,
            )
            count_cases(1)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("dilation", [3, 4, 7, 8, 15, 16, 17, 25, 31, 32, 48, 64, 100])
def test_dilations(dilation, engines, count_cases):
    """Fewer outputs than the dilation, and several times more: tiles are wide, or long."""
    rng = random.Random(3000 + dilation)
    for outputs in (1, dilation - 1, dilation + 1, 3 * dilation + 5, rng.randint(300, 700)):
        for mode in MODES:
            taps = rng.choice((2, 3, 5, 20))
            span = dilation * (taps - 1)
            # Circular and reflected padding are no longer than the series.
            left = rng.randint(0, min(span, outputs - 1) if mode in MODES[2:] else span)
            case = Case(
                rng.choice((1, 2, 17)), rng.choice((1, 4)), rng.choice((2, 20)), taps,
                outputs + span - left, padding=(left, 0), padding_mode=mode, dilation=dilation,
                dtype=rng.choice(("float32", "float32", "float64", "bfloat16")),
            )  # fmt: skip
            check(case, engines)
            count_cases(1)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("seed", range(20))
def test_lengths_at_which_taps_meet_only_padding(seed, count_cases):
    """One pattern at several lengths: each has its own taps that meet samples, or none."""
    rng = random.Random(4000 + seed)
    taps, stride, dilation = rng.choice((1, 2, 3, 7, 12)), rng.choice((1, 1, 2, 5)), 2 ** (seed % 6)
    left, right = (rng.randint(0, dilation * taps + 9) for _ in range(2))
    case = Case(
        rng.choice((1, 5)), 4, 6, taps, 1, stride, (left, right), dilation, rng.choice((1, 2)),
        dtype="float64", density=0.6, integers=True,
    )  # fmt: skip
    pattern = case.make_pattern()
    for length in (1, 9, dilation, dilation + 1, 80, 9, 1):
        case = replace(case, length=length)
        if not case.is_valid:
            continue
        wanted = exact_results(case, case.tensors())
        x, values, bias, grad = case.tensors()
        for t in (x, values):
            t.requires_grad_()
        y = sparse_conv1d(x, values, pattern, bias, **case.options)
        got = (y, *torch.autograd.grad(y, (x, values), grad))
        for name, found, exact in zip(NAMES, got, wanted, strict=True):
            assert found.equal(exact), (name, case)
        count_cases(1)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("seed", range(6))
def test_layers_of_many_channels(seed, engines, count_cases):
    """Larger than the kernels' blocks of channels, rows and positions."""
    rng = random.Random(2000 + seed)
    groups = rng.choice((1, 1, 2))
    sizes = {"in_channels": rng.randint(10, 70), "out_channels": rng.randint(20, 160)}
    sizes = {name: size * groups for name, size in sizes.items()}
    check(
        random_case(rng, n=rng.randint(1, 9), batched=True, groups=groups, density=0.1, **sizes),
        engines,
    )
    count_cases(1)


LARGE = "wgrad_splits output_row_blocks input_row_blocks taps_far_apart far_apart_and_strided"


@pytest.mark.promise("P1")
@pytest.mark.parametrize("name", LARGE.split())
def test_every_block_of_large_cases(name, engines, count_cases):
    check(replace(CASES[name], bias=True), engines)
    check(replace(CASES[name], bias=True, dtype="float64"), engines)
    count_cases(2)


@pytest.mark.promise("P2")
@pytest.mark.parametrize("seed", range(10))
def test_integers_are_exact(seed, engines, campaign, count_cases):
    rng, counted = random.Random(1000 + seed), 0
    while counted < campaign(30, 3000):
        counted += check_integers(random_case(rng, integers=True), engines)
    count_cases(counted)


@pytest.mark.promise("P6")
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layout_does_not_change_a_bit(name, dtype, engines, count_cases):
    for stride, mode, dilation in (
        (1, "replicate", 1), (2, "circular", 1), (1, "zeros", 1), (1, "reflect", 16),
    ):  # fmt: skip
        # A series of one channel has dimensions whose strides mean nothing.
        length = 33 + 4 * dilation
        one = Case(1, 1, 6, 5, length, stride, (3, 2), dilation, 1, mode, dtype, density=0.5)
        for case in (replace(one, n=3, in_channels=4, groups=2), one):
            count_cases(check_layout(case, name, engines) * len(list(engines())))


@pytest.mark.promise("P3")
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("geometry", ["dsn", "strided", "long", "dilated"])
def test_bits_do_not_depend_on_threads_batch_or_isa(geometry, dtype, engines, count_cases):
    # Large enough for every one of seven threads to get a share.
    case = replace(DSN_LIKE, n=16, in_channels=24, out_channels=48, dtype=dtype)
    if geometry == "strided":
        case = replace(
            case, stride=2, padding=40, dilation=2, groups=3, padding_mode="zeros", density=0.9
        )
    if geometry == "long":  # wgrad's lane groups in several runs
        case = replace(case, in_channels=4, out_channels=8, length=520)
    if geometry == "dilated":
        case = replace(case, kernel_size=5, padding=40, dilation=20, density=0.9)
    tensors = case.tensors()
    reversed_batch = tensors._replace(input=tensors.input.flip(0), grad=tensors.grad.flip(0))
    per_sample, weights = set(), {}
    for count in (1, 2, 7):
        with threads(count):
            for engine in engines():
                for n in (1, 2, 7, 16, 16):  # the whole batch twice: runs do not differ either
                    part = tensors._replace(input=tensors.input[:n], grad=tensors.grad[:n])
                    y, dx, dw = compute(replace(case, n=n), part, engine)
                    for i in range(n):
                        per_sample.add((engine.backend, i, digest(y[i]), digest(dx[i])))
                    same = weights.setdefault((engine.backend, n), {})
                    same.setdefault(digest(dw), []).append((count, engine))
                    count_cases(1)
                y, dx, _ = compute(case, reversed_batch, engine)
                for i in range(16):
                    per_sample.add((engine.backend, 15 - i, digest(y[i]), digest(dx[i])))
    backends = {backend for backend, *_ in per_sample}
    assert len(per_sample) == 16 * len(backends), "one result for each sample, whatever computed it"
    for batch, digests in weights.items():
        assert len(digests) == 1, f"wgrad of batch {batch} differs: {list(digests.values())}"


@pytest.mark.promise("P4")
@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", MODES)
def test_nan_and_inf_travel_along_active_weights_only(special, mode, engines, count_cases):
    for stride, pattern, dtype, dilation in (
        (1, "empty_row", "float32", 1),
        (2, "random", "float32", 1),
        (1, "dsn_evolved", "bfloat16", 1),
        (3, "one_dense_row", "float64", 1),
        (1, "random", "float32", 16),
    ):
        series = 17 + 2 * dilation, stride, (2, 1), dilation
        case = Case(1, 2, 4, 3, *series, 1, mode, dtype, pattern, density=0.4)
        plain = case.tensors()
        ones = Tensors(*(torch.ones_like(t) for t in plain))._replace(bias=None)
        # Infinity takes the way of NaN, which stands at every position.
        check_special_input(case, special, engines, every=1 if math.isnan(special) else 3)
        for at, kernel in enumerate(case.make_pattern().positions() // case.kernel_size):
            values, mark = marked(plain.values, at, special)
            o, c = divmod(int(kernel), case.in_channels)
            must = [met > 0 for met in exact_results(case, ones._replace(values=mark))[:2]]
            for engine in engines():
                y, dx, dw = compute(case, plain._replace(values=values), engine)
                assert dw.isfinite().all(), "the gradient of the weights does not read them"
                for result, hit, channel in ((y, must[0], o), (dx, must[1], c)):
                    bad = ~result.isfinite()
                    assert bad[hit].all(), (engine, at, case)
                    # Beyond the series it meets zeros, which again gives either.
                    bad[:, channel] = False
                    assert not bad.any(), (engine, at, case)
                if mode != "zeros":
                    assert (~y.isfinite()).equal(must[0]), (engine, at, case)
        for at in range(case.out_channels):
            bias, mark = marked(plain.bias, at, special)
            hit = mark.bool()[:, None].expand_as(plain.grad)
            for engine in engines():
                y, dx, dw = compute(case, plain._replace(bias=bias), engine)
                assert (~y.isfinite()).equal(hit), (engine, at, case)
                assert dx.isfinite().all()
                assert dw.isfinite().all()
        count_cases(sum(t.numel() for t in plain if t is not None))
