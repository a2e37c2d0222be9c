"""``torch.nn.utils.parametrize`` on ``values``, which is also the name of a dict method."""

from __future__ import annotations

from typing import Any

from torch import nn


class Parametrizations(nn.ModuleDict):
    """The container of a layer's parametrizations, by the name of the tensor.

    ``nn.ModuleDict`` refuses ``"values"``, after torch has taken the parameter away. Here it is the
    entry of that name, if there is one: by index, as an attribute, and for ``get_submodule``.
    """

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Accept any name that no other entry has."""
        if name == "values" and module is not None:
            self._modules[name] = module
        else:
            super().add_module(name, module)

    @property
    def values(self) -> Any:
        """The parametrizations of ``values``, or else the method of every dict."""
        held = self._modules.get("values")
        return super().values if held is None else held
