"""Features of ROCKET's and MiniROCKET's random kernels, and their pruning."""

from sparseconv.rocket.bank import KernelBank
from sparseconv.rocket.features import RocketModel, kernel_features

__all__ = ["KernelBank", "RocketModel", "kernel_features"]
