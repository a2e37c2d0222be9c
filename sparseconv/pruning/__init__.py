"""Making networks smaller by whole filters: ``prune_filters``, its criteria and its report."""

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
