"""Weight-sparse 1-D convolution for PyTorch: kernels that touch active weights only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparseconv import (
    _interpreter,  # noqa: F401 (first: it refuses where torch would hang)
    models,
)
from sparseconv._version import __version__
from sparseconv.core.pattern import KernelCSR, Region
from sparseconv.core.tracing import when_imported
from sparseconv.dst import DSTScheduler
from sparseconv.functional import sparse_conv1d
from sparseconv.inference import optimize_for_inference
from sparseconv.nn.conv import SparseConv1d
from sparseconv.ops.backends import available_backends

if TYPE_CHECKING:
    from sparseconv.classification import DSNClassifier
    from sparseconv.conversion import convert, to_dense
    from sparseconv.profiling import profile
    from sparseconv.training.run_folder import load_run

__all__ = [
    "DSNClassifier",
    "DSTScheduler",
    "KernelCSR",
    "Region",
    "SparseConv1d",
    "__version__",
    "available_backends",
    "convert",
    "load_run",
    "models",
    "optimize_for_inference",
    "profile",
    "sparse_conv1d",
    "to_dense",
]

# FlopCounterMode counts active weights. Its module imports Triton: only who uses it shall wait.
when_imported("torch.utils.flop_counter", "sparseconv.ops.flops")


def __getattr__(name: str) -> Any:
    # aeon and scikit-learn take seconds to import and are an extra: only who asks pays. Measuring
    # is nothing that a training run or a deployed model needs.
    if name == "DSNClassifier":
        from sparseconv.classification import DSNClassifier

        return DSNClassifier
    if name == "profile":
        from sparseconv.profiling import profile

        return profile
    if name == "load_run":
        from sparseconv.training.run_folder import load_run

        return load_run
    if name in ("convert", "to_dense"):
        from sparseconv import conversion

        return getattr(conversion, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
