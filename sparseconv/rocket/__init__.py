"""Features of ROCKET's and MiniROCKET's random kernels, and their pruning."""

from sparseconv.rocket.bank import KernelBank
from sparseconv.rocket.features import kernel_features
from sparseconv.rocket.model import RocketModel

__all__ = ["KernelBank", "RocketModel", "kernel_features"]
