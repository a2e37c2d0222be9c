"""What each sparse layer of a model costs beside dense."""

from sparseconv.profiling.layer_times import LayerTimes, Measurement
from sparseconv.profiling.profiler import profile
from sparseconv.profiling.result import Profile

__all__ = ["LayerTimes", "Measurement", "Profile", "profile"]
