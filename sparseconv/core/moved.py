"""Where the modules of version 0.1 are now, so that its pickles and imports work."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old name -> the modules that hold what it defined.
MOVED = {
    "pattern": ("core.pattern",),
    "classification": ("estimators.dsn",),
    "modules": ("nn.conv",),
    "machine": ("measure.machine", "measure.memory"),
    "checkpoint": ("training.checkpoint",),
    "recipe": ("training.recipe",),
    "evaluation": ("training.evaluation",),
    "training_data": ("training.data",),
    "run_folder": ("training.run_folder",),
    "graphed": ("training.graphed",),
    "profile_result": ("profiling.result",),
    "conversion_result": ("conversion.result", "profiling.result"),
    "triton": ("ops.triton",),
    "models.block": ("nn.block",),
    "bench.timing": ("measure.timing", "measure.machine"),
    # Private, but named in pickles of networks.
    "_merged": ("inference.spans", "inference.folding"),
    "_gradient_watch": ("nn.dense_gradient",),
    "_parametrizations": ("nn.parametrizations",),
    "_pattern_tag": ("nn.overwritten",),
    "_ranks": ("dst.ranks",),
}

RENAMED = {
    "Interval": "Estimate",
    "LayerConversion": "LayerTimes",
    "LayerProfile": "LayerTimes",
}


class _Moved(MetaPathFinder, Loader):
    """Finds a module under its old name, with the content of its successors."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "sparseconv" or name not in MOVED:
            return None
        return ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        successors = MOVED[module.__name__.partition(".")[2]]
        homes = [importlib.import_module(f"sparseconv.{name}") for name in successors]

        def find(name: str) -> Any:
            name = RENAMED.get(name, name)
            for home in homes:
                if hasattr(home, name):
                    return getattr(home, name)
            where = " and ".join(home.__name__ for home in homes)
            raise AttributeError(f"{module.__name__} has moved to {where}, without {name!r}")

        module.__doc__ = f"Moved to {', '.join(home.__name__ for home in homes)}."
        module.__getattr__ = find  # type: ignore[method-assign]
        vars(module)["__all__"] = [name for home in homes for name in vars(home) if name[0] != "_"]


sys.meta_path.append(_Moved())
