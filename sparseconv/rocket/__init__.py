"""Random convolution kernels: the features of ROCKET and MiniROCKET, and their pruning."""

from sparseconv.rocket.bank import KernelBank
from sparseconv.rocket.features import kernel_features

__all__ = ["KernelBank", "kernel_features"]
