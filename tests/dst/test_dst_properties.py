"""One prune-and-grow update: what it keeps, what it picks, how it draws; units of blocks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from dst_runs import in_blocks, scheduled
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refusals
from scipy.stats import chi2
from tiny import same

from sparseconv import KernelCSR, Region
from sparseconv.core.geometry import DTYPES
from sparseconv.dst import prune_and_grow, update


def mask_of(region: Region, shape: tuple[int, int, int]) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[slice(*region.out_channels), :, slice(*region.taps)] = True
    return mask.flatten()


# Infinite and not a number rank alike, the zeros too; the last two only differ in float64.
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1 + 2**-40, -1 - 2**-41)


@st.composite
def updates(draw: st.DrawFn) -> dict:
    """A layer cut into regions (some empty, some full), weights outside all, ties in the ranks."""
    shape = tuple(draw(st.integers(1, high)) for high in (5, 3, 7))
    cuts = sorted({0, shape[0], *draw(st.lists(st.integers(0, shape[0]), max_size=3))})
    regions = []
    for first, end in itertools.pairwise(cuts):
        left, right = sorted(draw(st.tuples(*[st.integers(0, shape[2])] * 2)))
        regions.append(Region((first, end), (left, right)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numel = math.prod(shape)
    active = torch.from_numpy(rng.random(numel) < draw(st.floats(0, 1)))
    pattern = KernelCSR.from_mask(active.view(shape))
    levels = draw(st.sampled_from([2, 5, 10**6]))  # few levels make ties
    values, dense_grad = (
        torch.from_numpy(rng.integers(-levels, levels + 1, n) / 8) for n in (pattern.nnz, shape)
    )
    for tensor in (values, dense_grad.view(-1)) if pattern.nnz else ():
        for number in draw(st.lists(st.sampled_from(SPECIAL), max_size=4)):
            tensor[int(rng.integers(len(tensor)))] = number
    return {
        "pattern": pattern,
        "values": values.to(draw(st.sampled_from(DTYPES))),
        "regions": regions[: draw(st.integers(0, len(regions)))],
        "fraction": draw(st.sampled_from([0.0, 1e-9, 0.1, 0.5, 0.9, 1.0])),
        "grow": draw(st.sampled_from(["random", "gradient", "static"])),
        "generator": torch.Generator().manual_seed(draw(st.integers(0, 2**32))),
        "dense_grad": dense_grad.to(draw(st.sampled_from(DTYPES))),
    }


@settings(max_examples=400, derandomize=True, deadline=None)
@given(updates())
def test_an_update_is_what_a_plain_loop_over_weights_says(case: dict) -> None:
    pattern, values = case["pattern"], case["values"]
    state = case["generator"].get_state()
    new, source = prune_and_grow(**case)
    case["generator"].set_state(state)
    with pytest.MonkeyPatch.context() as patch:  # tensor operations find what the kernel does
        patch.setattr(update, "extension", None)
        assert same(prune_and_grow(**case), (new, source))
    assert KernelCSR(new.crow_indices, new.col_indices, new.shape) == new
    old_positions, positions = pattern.positions(), new.positions()
    assert source.dtype == torch.int64
    assert source.shape == (pattern.nnz,)
    assert new.nnz == pattern.nnz
    survivors = source >= 0
    assert torch.equal(positions[survivors], old_positions[source[survivors]])
    pruned = set(range(pattern.nnz)) - set(source[survivors].tolist())
    grown = set(positions[~survivors].tolist())

    magnitudes, gains = (
        t.flatten().double().abs().nan_to_num(nan=math.inf, posinf=math.inf).tolist()
        for t in (values, case["dense_grad"])
    )
    expected_pruned, moved = set(), 0
    for region in case["regions"]:
        inside = mask_of(region, pattern.shape)
        active = [i for i, p in enumerate(old_positions.tolist()) if inside[p]]
        room = int(inside.sum()) - len(active)
        count = min(math.ceil(case["fraction"] * len(active)), room)
        if case["grow"] == "static":
            count = 0
        least = sorted(active, key=lambda i: (magnitudes[i], i))[:count]
        expected_pruned |= set(least)
        here = {p for p in grown if inside[p]}
        assert len(here) == count
        moved += count
        if case["grow"] == "gradient":
            kept = {int(old_positions[i]) for i in set(active) - set(least)}
            free = [p for p in inside.nonzero().flatten().tolist() if p not in kept]
            assert here == set(sorted(free, key=lambda p: (-gains[p], p))[:count])
    assert pruned == expected_pruned
    assert len(grown) == moved
    if moved == 0:
        assert new is pattern


@pytest.mark.parametrize("block", [1, 2])
def test_what_inference_mode_makes_outlives_it(block: int) -> None:
    pattern = KernelCSR.random((4, 4, 5), 40, block=block)
    with torch.inference_mode():
        new, _ = prune_and_grow(pattern, torch.randn(40), [Region((0, 4), (0, 5))], 0.5)
    assert new != pattern
    assert not new.col_indices.is_inference()


@pytest.mark.parametrize(
    ("size", "active", "fraction"), [(6, 3, 0.6), (7, 2, 0.5), (8, 4, 1.0), (5, 3, 1.0)]
)
def test_random_growth_draws_every_set_of_free_positions_equally_often(
    size: int, active: int, fraction: float
) -> None:
    """Chi-square over all subsets; small enough that most draws hold repeats."""
    pattern = KernelCSR.from_positions(torch.arange(active) * 2 % size, (1, 1, size))
    values = torch.arange(1.0, active + 1)
    count = min(math.ceil(fraction * active), size - active)
    free = size - (active - count)
    generator = torch.Generator().manual_seed(7)
    seen: dict[tuple[int, ...], int] = {}
    subsets = math.comb(free, count)
    draws = 40 * subsets
    for _ in range(draws):
        new, source = prune_and_grow(
            pattern, values, [Region((0, 1), (0, size))], fraction, generator=generator
        )
        key = tuple(new.positions()[source < 0].tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) <= subsets
    expected = draws / subsets
    statistic = sum((n - expected) ** 2 / expected for n in seen.values())
    statistic += (subsets - len(seen)) * expected
    assert chi2.sf(statistic, subsets - 1) > 0.001


# --- blocks: whole units move, and their number stays ---

SHAPE, BLOCK = (11, 5, 5), (4, 3)  # ragged both ways
REGIONS = [Region((0, 4), (0, 3)), Region((4, 8), (0, 3)), Region((0, 11), (3, 5))]


def counts(pattern: KernelCSR) -> list[tuple[int, int]]:
    """Active weights and units of each region."""
    mask, units = pattern.to_mask(), pattern.units().to_mask()
    found = []
    for (first, end), (left, right) in REGIONS:
        rows = slice(first // BLOCK[0], math.ceil(end / BLOCK[0]))
        weights = mask[first:end, :, left:right].sum()
        found.append((int(weights), int(units[rows, :, left:right].sum())))
    return found


def test_a_thousand_updates_keep_units_and_weights(count_cases: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    pattern = KernelCSR.random(SHAPE, 110, block=BLOCK, generator=generator)
    expected, moved, below = counts(pattern), 0, 0
    values = torch.randn(10, pattern.nnz, generator=generator)
    gradients = torch.randn(9, *SHAPE, generator=generator)
    for turn in range(1000):
        new, source = prune_and_grow(
            pattern, values[turn % 10], REGIONS, 0.4, grow=("random", "gradient")[turn % 2],
            generator=generator, dense_grad=gradients[turn % 9] if turn % 2 else None,
        )  # fmt: skip
        assert (new.block, new.nnz) == (BLOCK, pattern.nnz)
        if turn % 9 == 0:
            kept = source >= 0
            assert new.positions()[kept].equal(pattern.positions()[source[kept]])
            moved += int((~kept).sum())
            below += int(new.to_mask().masked_scatter(new.to_mask(), ~kept)[4:8, :, :3].sum())
        pattern = new
    assert counts(pattern) == expected
    assert KernelCSR.from_mask(pattern.to_mask(), BLOCK) == pattern
    assert moved > 1000, "by a ninth of the updates"
    assert below > 100, "in the region that does not begin at the first channel"
    count_cases(1000)


@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_what_moves_is_what_a_plain_loop_says(grow: str) -> None:
    torch.manual_seed(0)
    shape = (8, 6, 5)
    pattern = KernelCSR.random(shape, 96, block=BLOCK)
    values, gradient = torch.randn(pattern.nnz), torch.randn(shape)
    weight = torch.zeros(shape).masked_scatter(pattern.to_mask(), values)
    new, source = prune_and_grow(
        pattern, values, [Region((0, 8), (0, 5))], 0.5, grow=grow, dense_grad=gradient
    )
    active, now = pattern.units().to_mask(), new.units().to_mask()
    scores, gains = {}, {}
    for i, j, k in torch.ones_like(active).argwhere().tolist():
        part = slice(4 * i, 4 * i + 4), slice(3 * j, 3 * j + 3), k
        (scores if active[i, j, k] else {})[i, j, k] = float(weight[part].abs().mean())
        gains[i, j, k] = float(gradient[part].norm())
    least = sorted(scores, key=scores.__getitem__)[: math.ceil(len(scores) / 2)]
    kept = scores.keys() - set(least)
    survivors = torch.zeros(shape).masked_scatter(new.to_mask(), (source >= 0).float())
    expected = KernelCSR.from_mask(survivors != 0, BLOCK).units()
    assert {tuple(at) for at in expected.to_mask().argwhere().tolist()} == kept
    assert int(now.sum()) == int(active.sum())
    if grow == "gradient":
        free = sorted(gains.keys() - kept, key=gains.__getitem__)[-len(least) :]
        assert {tuple(at) for at in now.argwhere().tolist()} == kept | set(free)


PATTERN = KernelCSR.random(SHAPE, 110, block=BLOCK)


def cut() -> Any:
    model = in_blocks()
    model[0].regions = (Region((0, 3), (0, 7)),)
    return scheduled(model)


test_refuses = refusals(
    (lambda: prune_and_grow(PATTERN, torch.ones(PATTERN.nnz), [Region((0, 6), (0, 5))], 0.5),
     ValueError, "taps=(0, 5)) cuts a block of 4 output channels, whose taps move together"),
    (cut, ValueError, "begin and end at multiples of 4"),
)  # fmt: skip
