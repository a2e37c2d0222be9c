"""Compare the cost of each sparse layer with the cost of the same layer made dense."""

from sparseconv.measure.records import BeforeAfter, Counts, LayerTimes, Verdict
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate
from sparseconv.profiling.profiler import ModelTime, Profile, profile

__all__ = [
    "BeforeAfter",
    "Counts",
    "Estimate",
    "LayerTimes",
    "ModelTime",
    "Profile",
    "Table",
    "Verdict",
    "profile",
]
