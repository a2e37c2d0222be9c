"""Hold the index arrays of a pattern, on the CPU and on GPUs, and what is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from sparseconv.core.blocks import Block, Shape
from sparseconv.core.checks import check_structure
from sparseconv.core.tracing import outside_tracing

T = TypeVar("T")


class PatternArrays:
    """Hold the arrays of a ``KernelCSR``, made on the CPU or by an update on a GPU.

    To avoid waiting, the CPU reads and checks a GPU's arrays only when it first needs them.
    """

    _crow: Tensor | None  # None if only a GPU has them
    _col: Tensor | None
    _shape: Shape
    _block: Block
    _nnz: int
    _hash: int | None
    _cached: dict[tuple[Callable[..., Any], tuple[Hashable, ...]], Any]
    _copies: dict[str, tuple[Tensor, Tensor]]

    __slots__ = (*__annotations__, "__weakref__")

    def _hold(
        self, crow: Tensor, col: Tensor, shape: Shape, block: Block, checked: bool = True
    ) -> None:
        """Take ownership of these arrays; those on a GPU are not ``checked`` yet."""
        self._shape, self._block, self._nnz = shape, block, len(col)
        self._hash, self._cached, self._copies = None, {}, {}
        self._crow = self._col = None
        if checked:
            self._crow, self._col = crow, col
        else:
            self._copies[str(col.device)] = crow, col

    @property
    def only_on_gpu(self) -> bool:
        return self._col is None

    @property
    def crow_indices(self) -> Tensor:
        """Return where each kernel begins, int32 ``(C_out * C_in // groups + 1,)``; read-only."""
        return self._on_cpu()[0]

    @property
    def col_indices(self) -> Tensor:
        """Return the tap of each active weight, int32 ``(nnz,)``; read-only."""
        return self._on_cpu()[1]

    @property
    def shape(self) -> Shape:
        """Return ``(C_out, C_in // groups, K)``."""
        return self._shape

    @property
    def block(self) -> Block:
        """Return the channels ``(out, in)`` that share taps; ``(1, 1)`` means single weights."""
        return self._block

    @property
    def nnz(self) -> int:
        """Return the number of active weights."""
        return self._nnz

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return ``crow_indices`` and ``col_indices`` on a device, to which they are copied once.

        Raises:
            RuntimeError: the first copy would be made inside torch.compile.
        """
        name = device.type if device.type == "cpu" else str(device)
        if name == "cpu" and name not in self._copies:
            return self._on_cpu()
        if name not in self._copies:
            if torch.compiler.is_dynamo_compiling():  # each call of the graph would copy again
                raise RuntimeError(
                    f"this KernelCSR has not been used on {name} yet: call the function once, or "
                    f"pattern.on(torch.device({name!r})), before torch.compile"
                )
            with outside_tracing():
                self._copies[name] = self.crow_indices.to(device), self.col_indices.to(device)
        return self._copies[name]

    def cached(self, make: Callable[..., T], *args: Hashable) -> T:
        """Return ``make(self, *args)``, computed on the first call and kept.

        Tracing, transforms and fake modes during that call do not affect the result. Threads that
        compute it at the same time get the same object.
        """
        key = make, args
        if key not in self._cached:
            with outside_tracing():
                made = make(self, *args)
            self._cached.setdefault(key, made)
        return cast(T, self._cached[key])

    def keep(self, make: Callable[..., T], made: T) -> None:
        """Make ``cached(make)`` return ``made``."""
        self._cached[make, ()] = made

    def anywhere(self) -> tuple[Tensor, Tensor]:
        """Return the arrays on the CPU, or on the GPU if only the GPU has them."""
        return next(iter(self._copies.values())) if self.only_on_gpu else self._on_cpu()

    def _on_cpu(self) -> tuple[Tensor, Tensor]:
        """Return the arrays on the CPU; copy and check those that an update made on a GPU."""
        if self._crow is None or self._col is None:
            with outside_tracing(), torch.inference_mode(False):
                crow, col = (array.cpu() for array in self.anywhere())
                check_structure(crow, col, self._shape)
                self._crow, self._col = crow, col
        return self._crow, self._col
