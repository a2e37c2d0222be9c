"""Make networks smaller: remove filters by a criterion, or factorize layers."""

from sparseconv.pruning.channels import Channels, Layer, UnitSet
from sparseconv.pruning.criteria import DSP, HC, WHC, Criterion, Jacobian, Magnitude
from sparseconv.pruning.equivalent import merge
from sparseconv.pruning.evolution import Evolutionary
from sparseconv.pruning.factorize import Factorized, Sum, factorize
from sparseconv.pruning.filters import PrunedFilters, keep_filters, prune_filters
from sparseconv.pruning.report import FactorizationReport, FactorizedSet, LayerChange, PruningReport
from sparseconv.pruning.sparsity_loss import InstanceSparsity, Stage, published_stages

__all__ = [
    "DSP",
    "HC",
    "WHC",
    "Channels",
    "Criterion",
    "Evolutionary",
    "FactorizationReport",
    "Factorized",
    "FactorizedSet",
    "InstanceSparsity",
    "Jacobian",
    "Layer",
    "LayerChange",
    "Magnitude",
    "PrunedFilters",
    "PruningReport",
    "Stage",
    "Sum",
    "UnitSet",
    "factorize",
    "keep_filters",
    "merge",
    "prune_filters",
    "published_stages",
]
