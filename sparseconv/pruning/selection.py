"""Select the units to keep, by their scores and the share to remove."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseconv.core.checks import count, share
from sparseconv.pruning.channels import Channels, UnitSet
from sparseconv.pruning.criteria import Criterion
from sparseconv.pruning.surgery import mask


def checked_target(
    criterion: Criterion, fraction: float | None, target_macs: int | None
) -> tuple[float | None, int | None]:
    """Check that exactly one of the targets, or the criterion's threshold, decides."""
    given = [x for x in (fraction, target_macs) if x is not None]
    if criterion.threshold is not None and given:
        raise ValueError(
            f"{criterion!r} decides how many filters to remove; omit fraction and target_macs"
        )
    if criterion.threshold is None and len(given) != 1:
        raise ValueError(
            f"{criterion!r} needs either fraction, a share of the filters, or target_macs, but got "
            f"{'both' if given else 'neither'}"
        )
    if fraction is not None:
        fraction = share("fraction", fraction, below_one=True)  # 1 would leave no filter
    return fraction, None if target_macs is None else count("target_macs", target_macs)


def select_in_steps(
    work: nn.Module,
    channels: Channels,
    criterion: Criterion,
    fraction: float | None,
    target_macs: int | None,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Return the kept units (bool) and the last scores; mask the removed units in ``work``."""
    kept, last = torch.ones(channels.n_units, dtype=torch.bool), channels.zeros()
    for step in range(1, steps + 1):
        scores = criterion.scores(work, _restricted(channels, kept))
        of_all = isinstance(scores, Tensor) and scores.shape == kept.shape
        if not of_all:
            raise ValueError(
                f"{criterion!r} must return a score for each of {len(kept)} units "
                f"(channels.n_units), but returned {scores}"
            )
        if not scores.isfinite().all():
            bad = (~scores.isfinite()).nonzero()[:, 0]
            names = [n for n, x in channels.layers.items() if torch.isin(x.outputs, bad).any()]
            raise ValueError(
                f"expected finite scores from {criterion!r}, but filters of {names} have others; "
                "check that the weights and the data contain no NaN and no infinity"
            )
        last = scores.where(kept, last.to(scores))  # a removed unit keeps its last score
        selection = _Selection(channels, criterion.everywhere, kept, scores)
        if criterion.threshold is not None:
            kept = kept & (scores > criterion.threshold) | selection.best()
        elif fraction is not None:
            kept = selection.without(fraction * step / steps)
        else:
            assert target_macs is not None
            kept = selection.within(target_macs, step / steps)
        mask(work, channels, kept)
    return kept, last


def _restricted(channels: Channels, kept: Tensor) -> Channels:
    """Return a copy with only the kept units in its sets."""
    sets = []
    for group in channels.sets:
        stay = kept[group.units]
        rows = {name: found[stay] for name, found in group.rows.items()}
        sets.append(UnitSet(group.units[stay], rows))
    return replace(channels, sets=tuple(sets))


class _Selection(NamedTuple):
    channels: Channels
    everywhere: bool
    kept: Tensor
    scores: Tensor

    def pools(self) -> list[Tensor]:
        """Return the sets of units that each lose the same share."""
        sets = [group.units for group in self.channels.sets]
        return [torch.arange(len(self.kept))] if self.everywhere else sets

    def best(self) -> Tensor:
        """Return a bool mask of the best unit of each set."""
        best = torch.zeros_like(self.kept)
        ordered = self.scores.masked_fill(~self.kept, -torch.inf)
        for group in self.channels.sets:
            best[group.units[ordered[group.units].argmax()]] = True
        return best

    def without(self, share: float) -> Tensor:
        """Remove the worst share of the units, but keep at least one unit of each set."""
        best, kept = self.best(), self.kept.clone()
        order = self.scores.masked_fill(~kept, -torch.inf).masked_fill(best, torch.inf)
        for units in self.pools():
            gone = min(int(share * len(units) + 1e-9), len(units) - int(best[units].sum()))
            kept[units[order[units].argsort(stable=True)[:gone]]] = False
        return kept

    def within(self, target: int, progress: float) -> Tensor:
        """Remove as few units as possible to cover a share ``progress`` of the way to a target."""
        full = self.channels.macs()
        limit = full - (full - target) * progress
        sizes = {len(units) for units in self.pools()}
        shares = sorted({gone / size for size in sizes for gone in range(size)})
        first = bisect_left(shares, -limit, key=lambda x: -self.channels.macs(self.without(x)))
        if first == len(shares):
            raise ValueError(
                f"target_macs must be at least {self.channels.macs(self.without(1))}, the cost "
                f"with one filter in each layer, but got {target} (the whole model costs {full})"
            )
        return self.without(shares[first])
