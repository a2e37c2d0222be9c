"""What each sparse layer of a model costs, compared with the same layer dense."""

from sparseconv.measure.records import LayerTimes, Verdict
from sparseconv.profiling.profiler import ModelTime, Profile, profile

__all__ = ["LayerTimes", "ModelTime", "Profile", "Verdict", "profile"]
