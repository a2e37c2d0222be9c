"""``torch.nn.utils.parametrize`` on ``values``, a name that a dict has a method of."""

from __future__ import annotations

from typing import Any

from torch import nn


class Parametrizations(nn.ModuleDict):
    """What torch keeps a layer's parametrizations in, by the name of the tensor.

    ``nn.ModuleDict`` refuses ``"values"``, after torch has taken the parameter away. Here it is the
    entry of that name, if there is one: by index, as an attribute, and for ``get_submodule``.
    """

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Take any name that is not taken by another entry."""
        if name == "values" and module is not None:
            self._modules[name] = module
        else:
            super().add_module(name, module)

    @property
    def values(self) -> Any:
        """The parametrizations of ``values``, or else the method of every dict."""
        held = self._modules.get("values")
        return super().values if held is None else held
