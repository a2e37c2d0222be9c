"""Making networks smaller by whole filters: ``prune_filters``, its criteria and its report."""

from sparseconv.pruning.criteria import DSP, HC, WHC, Criterion, Jacobian, Magnitude

__all__ = ["DSP", "HC", "WHC", "Criterion", "Jacobian", "Magnitude"]
