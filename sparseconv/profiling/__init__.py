"""What each sparse layer of a model costs beside dense."""

from sparseconv.profiling.profiler import profile
from sparseconv.profiling.result import LayerTimes, Measurement, Profile

__all__ = ["LayerTimes", "Measurement", "Profile", "profile"]
