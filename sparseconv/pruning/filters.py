"""Remove whole filters from a network, chosen by their scores and the share to remove."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.core.checks import count, integer, share
from sparseconv.core.modules import check_not_wrapped, deepcopy_model
from sparseconv.measure.records import Counts
from sparseconv.nn.optimizers import OptimizerState
from sparseconv.pruning.channels import FILTERED, FIXED, Channels, UnitSet, kept_channels
from sparseconv.pruning.criteria import Criterion
from sparseconv.pruning.equivalent import EquivalentLayer, merge, with_pairs
from sparseconv.pruning.report import Smaller, SmallerNetwork, changes
from sparseconv.pruning.surgery import mask, remove, successor
from sparseconv.pruning.tracing import trace
from sparseconv.pruning.verification import removed_wrongly
from sparseconv.running import copied_arguments

NUMBERS = "must be a list of ints, the indices to keep (for a mask: mask.nonzero()[:, 0])"


@torch.inference_mode(False)  # inference tensors could not be trained later
def prune_filters(
    model: nn.Module,
    example_input: Any,
    criterion: Criterion,
    *,
    fraction: float | None = None,
    target_macs: int | None = None,
    steps: int = 1,
    ignore: Iterable[str] = (),
    equivalent: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
) -> Smaller:
    """Remove whole filters, and everything that belongs to them, from a copy of a model.

    A forward pass in eval mode finds what goes with a filter: its BatchNorm entry, its taps in a
    depthwise layer, the filters whose outputs are added to its own, and the corresponding input
    channel of each layer that reads it. Every layer, and every concatenated branch, keeps at least
    one filter. docs/pruning.md says which channels stay, and how the result is verified;
    ``report.left`` contains the reason for each layer. ``example_input`` must reach every layer,
    and all random numbers of the model must come from torch.

    Args:
        model: any module; it is left unchanged. ``nn.Conv1d``, ``nn.ConvTranspose1d``,
            ``SparseConv1d`` and ``nn.Linear`` lose filters. Norms and per-channel scales lose the
            corresponding entries. A ``SparseConv1d`` with blocks gets single weights.
        example_input: a tensor or an array ``(N, C, L)``, or a tuple of the model's arguments.
        criterion: ``DSP``, ``WHC``, ``HC``, ``Magnitude``, ``Jacobian`` or ``Evolutionary``.
        fraction: the share of filters to remove, in [0, 1), from each layer, or from all layers
            together if the criterion compares scores across layers (``Jacobian``). Filters removed
            together count as one.
        target_macs: instead of a fraction, the maximum number of multiply-adds for one series. As
            few filters as possible are removed to reach it.
        steps: the number of equal steps, each with new scores, in which filters are removed.
        ignore: names of modules that keep all their channels, as do the layers inside them.
        equivalent: add 1x1 convolutions through which removed filters contribute during
            fine-tuning: a compressor after each layer that loses filters, and a decompressor before
            each layer that reads them. ``report.merge()`` then returns the model in its pruned
            shape.
        optimizer: an optimizer for the model's parameters. ``report.optimizer`` is its successor,
            with the state of the kept weights. For a learning-rate scheduler, set
            ``scheduler.optimizer = report.optimizer``.

    Raises:
        TypeError, ValueError: an argument is out of range; the target cannot be reached; there is
            nothing to remove or, with ``equivalent``, no layer that can have a compressor; the
            model's outputs change between runs, or are not tensors in containers.
        NotImplementedError: the optimizer has state that cannot be cut to the kept weights, or the
            model runs, but its channels cannot be followed.
        RuntimeError: the model rejects ``example_input``; the error is torch's.

    Example:
        >>> import sparseconv as sc
        >>> from sparseconv.pruning import WHC
        >>> model = sc.models.ResNet(1, 2, nf=8)
        >>> pruned, report = prune_filters(model, torch.zeros(1, 1, 50), WHC(), fraction=0.5)
        >>> report.parameters
        Counts(before=7842, after=2066)

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017.
    For ``equivalent``, see ``merge``.
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(
            "criterion must be a Criterion from sparseconv.pruning, for example WHC(), but got "
            f"{criterion!r}"
        )
    targets = [x for x in (fraction, target_macs) if x is not None]
    if len(targets) != (criterion.threshold is None):
        wanted = "one" if criterion.threshold is None else "none, because it decides itself,"
        raise ValueError(
            f"{criterion!r} needs {wanted} of fraction, a share of the filters, and target_macs, "
            f"but got fraction={fraction} and target_macs={target_macs}"
        )
    fraction = None if fraction is None else share("fraction", fraction, below_one=True)
    target_macs = None if target_macs is None else count("target_macs", target_macs)
    steps = count("steps", steps)
    if equivalent and optimizer is not None:
        raise ValueError(
            "equivalent pruning changes what the parameters mean; do not pass optimizer, but build "
            "a new one afterwards"
        )
    state = None if optimizer is None else OptimizerState(optimizer)
    if state:
        state.check(dict(model.named_parameters()), model)
    edit = with_pairs if equivalent else remove
    ignore = ignore if isinstance(ignore, str) else tuple(ignore)  # each round reads it
    failed: dict[UnitSet, str] = {}
    while True:
        work, channels, arguments = _traced(model, example_input, ignore, failed)
        if not channels.n_units:
            every = "".join(f"\n{name}: {why}" for name, why in channels.left.items())
            expected = ", ".join(kind.__name__ for kind in FILTERED)
            raise ValueError(
                f"{type(model).__name__} has no filters that can be removed; expected layers such "
                f"as {expected}{':' * bool(every)}{every}"
            )
        kept, scores = _select_in_steps(work, channels, criterion, fraction, target_macs, steps)
        if not (wrong := removed_wrongly(edit, model, arguments, channels, kept)):
            break
        failed |= wrong
    pruned = deepcopy_model(model)
    unpaired: tuple[str, ...] = ()
    if equivalent:
        unpaired = with_pairs(pruned, channels, kept)
    else:
        cuts = remove(pruned, channels, kept)
        optimizer = successor(state, model, pruned, cuts) if state else None
    sizes = (sum(p.numel() for p in m.parameters()) for m in (model, merge(pruned)))
    report = SmallerNetwork(
        method=repr(criterion), layers=changes(channels, kept), parameters=Counts(*sizes),
        macs=Counts(channels.macs(), channels.macs(kept)),
        threshold=criterion.threshold if criterion.graded else None,
        unpaired=unpaired, left=channels.left, before=model, after=pruned, arguments=arguments,
        scores=scores, channels=channels, optimizer=optimizer,
    )  # fmt: skip
    return Smaller(pruned, report)


def _traced(
    model: nn.Module, example_input: Any, ignore: Iterable[str], failed: Mapping[UnitSet, str]
) -> tuple[nn.Module, Channels, tuple[Any, ...]]:
    check_not_wrapped(model, "prune")
    arguments = copied_arguments(model, example_input)
    ignore = [ignore] if isinstance(ignore, str) else list(ignore)
    if any(isinstance(layer, EquivalentLayer) for layer in model.modules()):
        raise ValueError(
            "the model contains compressors; first call sparseconv.pruning.merge(model)"
        )
    work = deepcopy_model(model)
    return work, trace(work, arguments, ignore, failed), arguments


@torch.inference_mode(False)
def keep_filters(
    model: nn.Module,
    example_input: Any,
    filters: Mapping[str, Iterable[int]],
    *,
    ignore: Iterable[str] = (),
) -> nn.Module:
    """Return a copy of a model that keeps only the given filters of some layers.

    Args:
        model, example_input, ignore: as in ``prune_filters``.
        filters: by layer name, the output channels to keep, as ints or an array; tied layers must
            agree. With ``{x.name: x.kept for x in report.layers}``, a new model gets the shape of
            the pruned one, so that it can load the pruned model's state dict.

    Raises:
        TypeError, ValueError: as in ``prune_filters``; a layer lacks one of the channels; tied
            filters are treated differently.

    Example:
        >>> import sparseconv as sc
        >>> model = sc.models.ResNet(1, 2, nf=4)
        >>> small = keep_filters(model, torch.zeros(1, 1, 30), {"blocks.0.body.0": [0, 2]})
        >>> small.blocks[0].body[0]
        Conv1d(1, 2, kernel_size=(7,), stride=(1,), padding=same, bias=False)
    """
    wanted = {
        name: {integer(f"filters of {name!r} {NUMBERS}", number) for number in given}
        for name, given in filters.items()
    }
    _, channels, arguments = _traced(model, example_input, ignore, {})
    kept = torch.ones(channels.n_units, dtype=torch.bool)
    for name, stay in wanted.items():
        if name not in channels.layers:
            raise ValueError(f"filters must name some of {list(channels.layers)}, but got {name!r}")
        outputs = channels.layers[name].outputs
        units = outputs[[number for number in range(len(outputs)) if number not in stay]]
        kept[units[units != FIXED]] = False
    for name, stay in wanted.items():
        stays = kept_channels(channels.layers[name].outputs, kept)
        found = stays.nonzero()[:, 0].tolist()
        if not stay or found != sorted(stay):
            raise ValueError(
                f"filters of {name!r} must contain at least one number, all below {len(stays)} and "
                f"as for tied layers, but got {sorted(stay)}, which would keep {found}"
            )
    for why in removed_wrongly(remove, model, arguments, channels, kept).values():
        raise ValueError(f"{why}; name the module with that code in ignore")
    pruned = deepcopy_model(model)
    remove(pruned, channels, kept)
    return pruned


def _select_in_steps(
    work: nn.Module,
    channels: Channels,
    criterion: Criterion,
    fraction: float | None,
    target_macs: int | None,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Return the kept units (bool) and the last scores; mask the removed units in ``work``."""
    kept, last = torch.ones(channels.n_units, dtype=torch.bool), channels.zeros()
    sets = [group.units for group in channels.sets]
    pools = [torch.arange(channels.n_units)] if criterion.everywhere else sets
    for step in range(1, steps + 1):
        scores = criterion.scores(work, _restricted(channels, kept))
        if not scores.isfinite().all():
            bad = (~scores.isfinite()).nonzero()[:, 0]
            names = [n for n, x in channels.layers.items() if torch.isin(x.outputs, bad).any()]
            raise ValueError(
                f"expected finite scores from {criterion!r}, but filters of {names} have others; "
                "check that the weights and the data contain no NaN and no infinity"
            )
        last = scores.where(kept, last.to(scores))  # a removed unit keeps its last score
        order = scores.masked_fill(~kept, -torch.inf)
        for units in sets:  # each keeps its best unit
            order[units[order[units].argmax()]] = torch.inf
        if criterion.threshold is not None:
            kept = order > criterion.threshold
        elif fraction is not None:
            kept = _without(fraction * step / steps, order, pools)
        else:
            assert target_macs is not None
            kept = _within(target_macs, step / steps, order, pools, channels)
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


def _without(share: float, order: Tensor, pools: Sequence[Tensor]) -> Tensor:
    """Remove the worst share of each pool of units, but no unit whose order is infinite."""
    kept = order > -torch.inf
    for units in pools:
        gone = min(int(share * len(units) + 1e-9), int((order[units] < torch.inf).sum()))
        kept[units[order[units].argsort(stable=True)[:gone]]] = False
    return kept


def _within(
    target: int, progress: float, order: Tensor, pools: Sequence[Tensor], channels: Channels
) -> Tensor:
    """Remove as few units as possible to cover a share ``progress`` of the way to a target."""

    def macs(share: float) -> int:
        return channels.macs(_without(share, order, pools))

    full = channels.macs()
    limit = full - (full - target) * progress
    sizes = {len(units) for units in pools}
    shares = sorted({gone / size for size in sizes for gone in range(size)})
    first = bisect_left(shares, -limit, key=lambda share: -macs(share))
    if first == len(shares):
        raise ValueError(
            f"target_macs must be at least {macs(1)}, the cost with one filter in each layer, but "
            f"got {target} (the whole model costs {full})"
        )
    return _without(shares[first], order, pools)
