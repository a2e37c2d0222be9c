"""Making networks smaller by whole filters: ``prune_filters``, its criteria and its report."""

from typing import Any

from sparseconv.core import pattern
from sparseconv.dst import update
from sparseconv.pruning.criteria import DSP, HC, WHC, Criterion, Jacobian, Magnitude
from sparseconv.pruning.equivalent import merge
from sparseconv.pruning.evolution import Evolutionary
from sparseconv.pruning.factorize import factorize
from sparseconv.pruning.filters import keep_filters, prune_filters
from sparseconv.pruning.report import PruningReport
from sparseconv.pruning.sparsity_loss import InstanceSparsity, Stage

__all__ = [
    "DSP",
    "HC",
    "WHC",
    "Criterion",
    "Evolutionary",
    "InstanceSparsity",
    "Jacobian",
    "Magnitude",
    "PruningReport",
    "Stage",
    "factorize",
    "keep_filters",
    "merge",
    "prune_filters",
]


# What version 0.1 had in a module of this name; it is about single weights.
_MOVED = dict.fromkeys(("GROWTHS", "check_growth", "check_regions", "cosine_decay"), update)
_MOVED |= {"carry_over": pattern, "prune_and_grow": update}


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        return getattr(_MOVED[name], name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
