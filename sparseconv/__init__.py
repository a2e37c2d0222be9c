"""Weight-sparse 1-D convolution for PyTorch: kernels that touch only active weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparseconv import models
from sparseconv._version import __version__
from sparseconv.core.blocks import Region, block_mask
from sparseconv.core.pattern import KernelCSR
from sparseconv.dst import DSTScheduler
from sparseconv.functional import sparse_conv1d, sparse_conv_transpose1d
from sparseconv.inference import optimize_for_inference
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.conv_transpose import SparseConvTranspose1d
from sparseconv.ops.backends import available_backends
from sparseconv.ops.flops import teach_counters

if TYPE_CHECKING:
    from sparseconv.compiler import compiled_report
    from sparseconv.conversion import convert, to_dense
    from sparseconv.edge import export_c
    from sparseconv.estimators.dsn import DSNClassifier
    from sparseconv.estimators.pocket import POCKETClassifier, RocketTransformer, prune_rocket
    from sparseconv.measure.machine import retain_freed_memory
    from sparseconv.profiling import profile
    from sparseconv.pruning.factorize import factorize
    from sparseconv.pruning.filters import prune_filters
    from sparseconv.rocket import KernelBank, kernel_features
    from sparseconv.training.run_folder import load_run

__all__ = [
    "DSNClassifier",
    "DSTScheduler",
    "KernelBank",
    "KernelCSR",
    "POCKETClassifier",
    "Region",
    "RocketTransformer",
    "SparseConv1d",
    "SparseConvTranspose1d",
    "__version__",
    "available_backends",
    "block_mask",
    "compiled_report",
    "convert",
    "export_c",
    "factorize",
    "kernel_features",
    "load_run",
    "models",
    "optimize_for_inference",
    "profile",
    "prune_filters",
    "prune_rocket",
    "retain_freed_memory",
    "sparse_conv1d",
    "sparse_conv_transpose1d",
    "to_dense",
]

# Imported at their first use: aeon and scikit-learn are an extra and take seconds to import, and
# neither training nor a deployed model needs the measuring modules.
_LAZY = {
    "DSNClassifier": "estimators.dsn",
    "KernelBank": "rocket.bank",
    "POCKETClassifier": "estimators.pocket",
    "RocketTransformer": "estimators.pocket",
    "compiled_report": "compiler",
    "convert": "conversion",
    "export_c": "edge",
    "factorize": "pruning.factorize",
    "kernel_features": "rocket.features",
    "load_run": "training.run_folder",
    "profile": "profiling",
    "prune_filters": "pruning.filters",
    "prune_rocket": "estimators.pocket",
    "retain_freed_memory": "measure.machine",
    "to_dense": "conversion",
}

# Modules that the guides name, so that it does not matter what was imported before.
_MODULES = ("datasets", "pruning", "rocket", "testing", "training")

teach_counters()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"sparseconv.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"sparseconv.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package in ("sparseconv", "torch"):
            raise
        hint = "install it with `pip install 'sparseconv[tsc]'`"
        raise ImportError(f"sparseconv.{name} needs {package}; {hint}", name=package) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES})
