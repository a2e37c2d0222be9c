"""What each sparse layer of a model costs, compared with the same layer dense."""

from sparseconv.measure.records import LayerTimes, Verdict
from sparseconv.profiling.profiler import profile
from sparseconv.profiling.report import ModelTime, Profile

__all__ = ["LayerTimes", "ModelTime", "Profile", "Verdict", "profile"]
