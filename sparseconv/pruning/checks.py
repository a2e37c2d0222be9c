"""What ``prune_filters`` and ``keep_filters`` demand of their arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparseconv.core.checks import count, integer, number
from sparseconv.nn.modules import check_not_compiled, owners_of
from sparseconv.profiling.stopwatch import copied_arguments
from sparseconv.pruning.criteria import Criterion
from sparseconv.pruning.equivalent import has_pairs
from sparseconv.pruning.tracing import PRUNABLE, ignored_modules


def checked_example(example_input: Any) -> tuple[Any, ...]:
    """Return the model's arguments, as a tuple of copies."""
    arguments = copied_arguments(example_input, "example_input")
    if any(isinstance(x, Tensor) and not x.numel() for x in tree_leaves(arguments)):
        raise ValueError("example_input must hold a series at least, but holds none")
    return arguments


def checked_target(
    criterion: Criterion, ratio: float | None, target_macs: int | None
) -> tuple[float | None, int | None]:
    """Return one of the two; neither for a criterion with a threshold."""
    if criterion.threshold is not None:
        if ratio is not None or target_macs is not None:
            raise ValueError(
                f"{criterion!r} finds out how many filters go; leave ratio and target_macs out"
            )
        return None, None
    if (ratio is None) == (target_macs is None):
        raise ValueError(
            f"{criterion!r} needs either ratio, a share of the filters, or target_macs; got "
            f"{'neither' if ratio is None else 'both'}"
        )
    if ratio is None:
        return None, count("target_macs", target_macs)
    ratio = number("ratio", ratio)
    if not 0 <= ratio < 1:
        raise ValueError(
            f"ratio must lie in [0, 1), since every layer keeps a filter, but got {ratio}"
        )
    return ratio, None


def checked_numbers(filters: Mapping[str, Iterable[int]]) -> dict[str, set[int]]:
    """Return the numbers of the filters of each layer, given as ints or as arrays of them."""
    found = {}
    for name, given in filters.items():
        expectation = (
            f"filters of {name!r} must be a list of ints, the numbers of those that stay (of a "
            "mask: mask.nonzero()[:, 0])"
        )
        found[name] = {integer(expectation, number) for number in given}
    return found


def check_supported(model: nn.Module, ignore: Iterable[str]) -> None:
    """Refuse what surgery could not change without breaking it.

    Raises:
        ValueError: what, by its name, and what to do.
    """
    check_not_compiled(model, "prune")
    if has_pairs(model):
        raise ValueError("the model holds compressors; sparseconv.pruning.merge(model) comes first")
    modules = dict(model.named_modules(remove_duplicate=False))  # a shared one by each of its names
    if unknown := [name for name in ignore if name not in modules]:
        raise ValueError(
            f"ignore names {unknown[0]!r}, but the model has no such module; model.named_modules() "
            "lists them"
        )
    ignored = ignored_modules(model, ignore)
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name or 'it'!r} is a ScriptModule; prune before torch.jit")
        if not isinstance(module, PRUNABLE) or module in ignored:
            continue
        for key in ("weight", "values", "bias"):
            if hasattr(module, key) and key not in module._parameters:
                raise ValueError(
                    f"{key!r} of {name!r} is computed from other parameters; undo that "
                    "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations), or name "
                    "the layer in ignore"
                )
    for owners in owners_of(model).values():
        if len(owners) > 1:
            raise ValueError(
                f"{owners[0]!r} and {owners[1]!r} share a parameter; only a layer that is used "
                "twice as a whole can be pruned"
            )


def check_scores(criterion: Criterion, scores: Tensor, n_units: int) -> None:
    """Refuse what is not a finite score for each unit."""
    if not isinstance(scores, Tensor) or scores.shape != (n_units,):
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"{criterion!r} must give a score for each of {n_units} units (channels.n_units), but "
            f"gave {found}"
        )
    if not scores.isfinite().all():
        raise ValueError(
            f"{criterion!r} gave scores that are not finite; check the weights and the data"
        )
