"""What ``prune_filters`` and ``keep_filters`` demand of their arguments."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from sparseconv.core.checks import count, number
from sparseconv.nn.modules import check_not_compiled, owners_of
from sparseconv.pruning.criteria import Criterion
from sparseconv.pruning.equivalent import has_pairs
from sparseconv.pruning.tracing import PRUNABLE, ignored_modules


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
    if not 0 <= (ratio := number("ratio", ratio)) < 1:
        raise ValueError(
            f"ratio must lie in [0, 1), since every layer keeps a filter, but got {ratio}"
        )
    return ratio, None


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
    if not isinstance(scores, Tensor) or scores.shape != (n_units,) or not scores.isfinite().all():
        raise ValueError(
            f"{criterion!r} must give a finite score for each of {n_units} units "
            f"(channels.n_units), but gave {scores}; check the weights and the data"
        )
