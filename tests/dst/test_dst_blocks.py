"""Dynamic sparse training of blocks moves whole units, and keeps their number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from dst_runs import in_blocks, scheduled
from refusals import refusals

from sparseconv import KernelCSR, Region
from sparseconv.dst import prune_and_grow

SHAPE, BLOCK = (7, 5, 5), (4, 3)  # ragged both ways
REGIONS = [Region((0, 4), (0, 3)), Region((0, 7), (3, 5))]


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
    pattern = KernelCSR.random(SHAPE, 70, block=BLOCK, generator=generator)
    expected, moved = counts(pattern), 0
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
        pattern = new
    assert counts(pattern) == expected
    assert KernelCSR.from_mask(pattern.to_mask(), BLOCK) == pattern
    assert moved > 1000, "by a ninth of the updates"
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


PATTERN = KernelCSR.random(SHAPE, 70, block=BLOCK)


def cut() -> Any:
    model = in_blocks()
    model[0].regions = (Region((0, 3), (0, 7)),)
    return scheduled(model)


test_refuses = refusals(
    (lambda: prune_and_grow(PATTERN, torch.ones(PATTERN.nnz), [Region((0, 6), (0, 5))], 0.5),
     ValueError, "taps=(0, 5)) cuts a block of 4 output channels, whose taps move together"),
    (cut, ValueError, "begin and end at multiples of 4"),
)  # fmt: skip
