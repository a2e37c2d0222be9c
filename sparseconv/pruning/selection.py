"""Which units are kept: by a criterion's scores, and by how many filters are to go."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparseconv.core.checks import count, number
from sparseconv.pruning.channels import Channels, UnitSet
from sparseconv.pruning.criteria import Criterion
from sparseconv.pruning.surgery import mask


def checked_target(
    criterion: Criterion, ratio: float | None, target_macs: int | None
) -> tuple[float | None, int | None]:
    """Return one of the two; neither for a criterion with a threshold."""
    given = [x for x in (ratio, target_macs) if x is not None]
    if criterion.threshold is not None and given:
        raise ValueError(
            f"{criterion!r} finds out how many filters go; leave ratio and target_macs out"
        )
    if criterion.threshold is None and len(given) != 1:
        raise ValueError(
            f"{criterion!r} needs either ratio, a share of the filters, or target_macs; got "
            f"{'both' if given else 'neither'}"
        )
    if ratio is not None and not 0 <= (ratio := number("ratio", ratio)) < 1:
        raise ValueError(
            f"ratio must lie in [0, 1), since every layer keeps a filter, but got {ratio}"
        )
    return ratio, None if target_macs is None else count("target_macs", target_macs)


def select_in_steps(
    work: nn.Module,
    channels: Channels,
    criterion: Criterion,
    ratio: float | None,
    target_macs: int | None,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Return which units are kept, and the last scores; weights of others become 0 in ``work``."""
    kept, last = torch.ones(channels.n_units, dtype=torch.bool), channels.zeros()
    for step in range(1, steps + 1):
        scores = criterion.scores(work, _restricted(channels, kept))
        _check_scores(criterion, scores, channels.n_units)
        last = scores.where(kept, last.to(scores))  # a unit that has fallen keeps its own
        if criterion.threshold is not None:
            kept = kept & (scores > criterion.threshold) | _best(channels, kept, scores)
        elif ratio is not None:
            kept = _choose(channels, kept, scores, criterion, ratio * step / steps)
        else:
            assert target_macs is not None
            kept = _within(channels, kept, scores, criterion, target_macs, step / steps)
        mask(work, channels, kept)
    return kept, last


def _check_scores(criterion: Criterion, scores: Tensor, n_units: int) -> None:
    if not isinstance(scores, Tensor) or scores.shape != (n_units,) or not scores.isfinite().all():
        raise ValueError(
            f"{criterion!r} must give a finite score for each of {n_units} units "
            f"(channels.n_units), but gave {scores}; check the weights and the data"
        )


def _restricted(channels: Channels, kept: Tensor) -> Channels:
    """Return the same network, in which only kept units compete."""
    sets = []
    for group in channels.sets:
        stay = kept[group.units]
        rows = {name: found[stay] for name, found in group.rows.items()}
        sets.append(UnitSet(group.units[stay], rows))
    return replace(channels, sets=tuple(sets))


def _best(channels: Channels, kept: Tensor, scores: Tensor) -> Tensor:
    """Return a bool mask: the best unit of each set."""
    best = torch.zeros_like(kept)
    ordered = scores.masked_fill(~kept, -torch.inf)
    for group in channels.sets:
        best[group.units[ordered[group.units].argmax()]] = True
    return best


def _pools(channels: Channels, criterion: Criterion) -> list[Tensor]:
    """Return the units of which the same share goes."""
    every = [torch.arange(channels.n_units)]
    return every if criterion.everywhere else [group.units for group in channels.sets]


def _choose(
    channels: Channels, kept: Tensor, scores: Tensor, criterion: Criterion, share: float
) -> Tensor:
    """Keep the best units, all but a share of those that there were; of each set at least one."""
    best = _best(channels, kept, scores)
    order = scores.masked_fill(~kept, -torch.inf).masked_fill(best, torch.inf)
    result = kept.clone()
    for units in _pools(channels, criterion):
        count = min(int(share * len(units) + 1e-9), len(units) - int(best[units].sum()))
        result[units[order[units].argsort(stable=True)[:count]]] = False
    return result


def _within(
    channels: Channels,
    kept: Tensor,
    scores: Tensor,
    criterion: Criterion,
    target: int,
    progress: float,
) -> Tensor:
    """Keep the most units that are so far on the way to a number of multiply-adds."""

    def left(share: float) -> int:
        return channels.macs(_choose(channels, kept, scores, criterion, share))

    full = channels.macs()
    limit = full - (full - target) * progress
    sizes = {len(units) for units in _pools(channels, criterion)}
    shares = sorted({count / size for size in sizes for count in range(size)})
    first = bisect_left(shares, -limit, key=lambda share: -left(share))
    if first == len(shares):
        raise ValueError(
            f"target_macs={target} is out of reach: with one filter in each layer {left(1)} "
            f"multiply-adds are left, of {full}"
        )
    return _choose(channels, kept, scores, criterion, shares[first])
