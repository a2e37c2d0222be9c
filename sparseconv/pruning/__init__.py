"""Make networks smaller: remove filters by a criterion, or factorize layers."""

from sparseconv.pruning.channels import Channels, Layer, UnitSet
from sparseconv.pruning.criteria import DSP, HC, WHC, Criterion, Evolutionary, Jacobian, Magnitude
from sparseconv.pruning.equivalent import merge
from sparseconv.pruning.factorize import Sum, factorize
from sparseconv.pruning.filters import keep_filters, prune_filters
from sparseconv.pruning.report import Change, Smaller, SmallerNetwork
from sparseconv.pruning.sparsity_loss import InstanceSparsity, Stage, published_stages

__all__ = [
    "DSP",
    "HC",
    "WHC",
    "Change",
    "Channels",
    "Criterion",
    "Evolutionary",
    "InstanceSparsity",
    "Jacobian",
    "Layer",
    "Magnitude",
    "Smaller",
    "SmallerNetwork",
    "Stage",
    "Sum",
    "UnitSet",
    "factorize",
    "keep_filters",
    "merge",
    "prune_filters",
    "published_stages",
]
