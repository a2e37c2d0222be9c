"""Define ``KernelCSR``, the active weights of a 1-D convolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from sparseconv.core.blocks import Block, Shape, check_mask, checked_block, spread, unit_shape
from sparseconv.core.checks import (
    check_dense,
    check_structure,
    check_vector,
    checked_shape,
    integer,
)
from sparseconv.core.tracing import outside_tracing

T = TypeVar("T")


class KernelCSR:
    """Store which weights of a convolution are active: one CSR row per kernel, one column per tap.

    Row ``o * (C_in // groups) + c`` is the kernel from input channel ``c`` of its group to output
    channel ``o``; within a row, the taps ascend. A pattern is immutable, and compares and hashes by
    content. The constructor copies its arrays. Do not write to ``crow_indices`` or ``col_indices``:
    what was computed from them would stay as it was.

    Args:
        crow_indices, col_indices: int32 ``(C_out * C_in // groups + 1,)`` and ``(nnz,)``, on any
            device.
        shape: ``(C_out, C_in // groups, K)``, with fewer than 2**31 weights.
        block: numbers of channels ``(out, in)`` whose kernels have the same taps, or one int for
            both; 1 means single weights. One tap of a block is a *unit*: dynamic sparse training
            moves whole units, and bfloat16 instructions and tensor cores multiply them. The last
            blocks may be smaller.

    Raises:
        TypeError, ValueError: arrays that are not a CSR structure of this shape, in dense int32
            tensors; a block that is larger than the weight, or whose kernels differ.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[[True, False, True]], [[False, False, False]]])
        >>> pattern = KernelCSR.from_mask(mask)
        >>> pattern
        KernelCSR(shape=(2, 1, 3), nnz=2, density=33.33 %)
        >>> pattern.crow_indices, pattern.col_indices
        (tensor([0, 2, 2], dtype=torch.int32), tensor([0, 2], dtype=torch.int32))
    """

    __module__ = "sparseconv"  # the name in pickles and reprs
    _arrays: tuple[Tensor, Tensor] | None  # None if only a GPU has them
    _shape: Shape
    _block: Block
    _nnz: int
    _hash: int | None
    _cached: dict[tuple[Callable[..., Any], tuple[Hashable, ...]], Any]
    _copies: dict[str, tuple[Tensor, Tensor]]
    __slots__ = (*__annotations__, "__weakref__")

    def __init__(
        self,
        crow_indices: Tensor,
        col_indices: Tensor,
        shape: Shape,
        block: int | tuple[int, int] = 1,
    ) -> None:
        shape = checked_shape(shape)
        pair = checked_block(block, shape)
        for name, array in (("crow_indices", crow_indices), ("col_indices", col_indices)):
            check_vector(name, array, torch.int32)
        # Inference tensors have no version counter, and the pattern outlives the mode.
        with torch.inference_mode(False):
            crow = crow_indices.detach().cpu().clone(memory_format=torch.contiguous_format)
            col = col_indices.detach().cpu().clone(memory_format=torch.contiguous_format)
        check_structure(crow, col, shape)
        self._hold(crow, col, shape, pair)
        if pair != (1, 1):
            check_mask(self.to_mask(), pair)

    def _hold(
        self, crow: Tensor, col: Tensor, shape: Shape, block: Block, checked: bool = True
    ) -> None:
        """Take ownership of these arrays; those on a GPU are not ``checked`` yet."""
        self._shape, self._block, self._nnz = shape, block, len(col)
        self._hash, self._cached = None, {}
        self._arrays = (crow, col) if checked else None
        self._copies = {} if checked else {str(col.device): (crow, col)}

    @classmethod
    def of_arrays(
        cls, crow: Tensor, col: Tensor, shape: Shape, block: Block, checked: bool = True
    ) -> Self:
        """Adopt the arrays of an update; those on a GPU are checked when the CPU reads them."""
        pattern = cls.__new__(cls)
        pattern._hold(crow, col, shape, block, checked)
        return pattern

    @classmethod
    def from_mask(cls, mask: Tensor, block: int | tuple[int, int] = 1) -> KernelCSR:
        """Build the pattern of a dense bool mask ``(C_out, C_in // groups, K)``.

        Raises:
            TypeError, ValueError: any other mask, or one that is not constant in blocks.

        Example:
            >>> KernelCSR.from_mask(torch.eye(3, dtype=torch.bool)[None]).col_indices
            tensor([0, 1, 2], dtype=torch.int32)
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            remedy = "weight != 0" if isinstance(mask, Tensor) else "torch.as_tensor(weight) != 0"
            raise TypeError(f"mask must be a bool tensor, but got {kind}; use `{remedy}`")
        check_dense("mask", mask)
        shape = checked_shape(mask.shape)
        pair = checked_block(block, shape)
        if pair != (1, 1):
            check_mask(mask, pair)
        positions = mask.detach().cpu().flatten().nonzero().squeeze(1)
        pattern = cls.from_positions(positions, shape)
        return cls.of_arrays(*pattern._on_cpu(), shape, pair)

    @classmethod
    def from_units(cls, units: KernelCSR, shape: Shape, block: int | tuple[int, int]) -> KernelCSR:
        """Build a pattern from its active units.

        Each kernel of ``units`` specifies the taps of all kernels in one block.

        Args:
            units: of shape ``(ceil(C_out / out), ceil(C_in // groups / in), K)``.
            shape, block: see the class.

        Example:
            >>> KernelCSR.from_units(KernelCSR.random((1, 1, 3), 2), (2, 2, 3), block=2)
            KernelCSR(shape=(2, 2, 3), nnz=8, density=66.67 %, block=(2, 2))
        """
        shape = checked_shape(shape)
        pair = checked_block(block, shape)
        wanted, came = unit_shape(shape, pair), getattr(units, "shape", units)
        if not isinstance(units, KernelCSR) or came != wanted:
            raise ValueError(
                f"units must be a KernelCSR of shape {wanted} for a weight of shape {shape} in "
                f"blocks of {pair}, but got {type(units).__name__}, {came}"
            )
        if pair == (1, 1):
            return units
        return cls.from_mask(spread(units.to_mask(), shape, pair), pair)

    @classmethod
    def from_positions(cls, positions: Tensor, shape: Shape) -> KernelCSR:
        """Build the pattern whose active weights have these positions in the flattened mask.

        Args:
            positions: int64 ``(nnz,)``, strictly ascending, as ``positions()`` returns them.

        Raises:
            TypeError, ValueError: any other positions.

        Example:
            >>> KernelCSR.from_positions(torch.tensor([0, 5]), (2, 1, 3)).to_mask().view(2, 3).int()
            tensor([[1, 0, 0],
                    [0, 0, 1]], dtype=torch.int32)
        """
        shape = checked_shape(shape)
        check_vector("positions", positions, torch.int64)
        flat = positions.detach().cpu().numpy()
        rows, kernel_size = shape[0] * shape[1], shape[2]
        inside = not len(flat) or 0 <= flat[0] <= flat[-1] < rows * kernel_size
        if not inside or not (flat[1:] > flat[:-1]).all():
            raise ValueError(
                f"positions must ascend without repetition from 0 to {rows * kernel_size - 1} for "
                f"shape {shape}, but got {positions}; sort them first"
            )
        # int32 holds every position, and NumPy is faster with it.
        flat = flat.astype(np.int32)
        kernel = flat // np.int32(kernel_size)
        crow = np.zeros(rows + 1, np.int32)
        np.cumsum(np.bincount(kernel, minlength=rows), out=crow[1:])
        with torch.inference_mode(False):
            tap = torch.from_numpy(flat - kernel * np.int32(kernel_size))
            return cls.of_arrays(torch.from_numpy(crow), tap, shape, (1, 1))

    @classmethod
    def full(cls, shape: Shape) -> KernelCSR:
        """Return the pattern with every weight active, as in a dense convolution.

        Example:
            >>> KernelCSR.full((2, 1, 3))
            KernelCSR(shape=(2, 1, 3), nnz=6, density=100.00 %)
        """
        positions = torch.arange(math.prod(checked_shape(shape)), device="cpu")
        return cls.from_positions(positions, shape)

    @classmethod
    def random(
        cls,
        shape: Shape,
        nnz: int,
        *,
        block: int | tuple[int, int] = 1,
        generator: torch.Generator | None = None,
    ) -> KernelCSR:
        """Draw ``nnz`` active weights, or units of blocks, uniformly without replacement.

        Args:
            nnz: number of active weights. With blocks, ``round(nnz / numel * units)`` units are
                drawn, so the pattern's ``nnz`` may differ.
            shape, block: see the class.
            generator: a CPU generator, by default torch's global one.

        Raises:
            TypeError, ValueError: ``nnz`` is not an int in ``[0, numel]``.

        Example:
            >>> KernelCSR.random((8, 4, 5), 32, generator=torch.Generator().manual_seed(0)).nnz
            32
        """
        numel = math.prod(checked_shape(shape))
        nnz = integer("nnz must be an int", nnz)
        if not 0 <= nnz <= numel:
            raise ValueError(f"nnz must lie in [0, {numel}] for shape {shape}, but got {nnz}")
        of_units = unit_shape(shape, checked_block(block, shape))
        order = torch.randperm(math.prod(of_units), generator=generator, device="cpu")
        drawn = order[: round(nnz / numel * len(order))].sort().values
        return cls.from_units(cls.from_positions(drawn, of_units), shape, block)

    def units(self) -> KernelCSR:
        """Return the pattern of active units; with single weights, the pattern itself.

        Example:
            >>> KernelCSR.random((32, 32, 9), 18 * 256, block=16).units()
            KernelCSR(shape=(2, 2, 9), nnz=18, density=50.00 %)
        """
        if self._block == (1, 1):
            return self
        out, channels = self._block
        return KernelCSR.from_mask(self.to_mask()[::out, ::channels])

    @property
    def numel(self) -> int:
        """Return the number of weights, active or not."""
        return self._shape[0] * self._shape[1] * self._shape[2]

    @property
    def density(self) -> float:
        """Return ``nnz / numel``."""
        return self.nnz / self.numel

    @property
    def only_on_gpu(self) -> bool:
        return self._arrays is None

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

    def indices_where_stored(self) -> tuple[Tensor, Tensor]:
        """Return the arrays on the CPU, or on the GPU if only the GPU has them."""
        return self._arrays or next(iter(self._copies.values()))

    def _on_cpu(self) -> tuple[Tensor, Tensor]:
        """Return the arrays on the CPU; copy and check those that an update made on a GPU."""
        if self._arrays is None:
            with outside_tracing():
                crow, col = (array.cpu() for array in self.indices_where_stored())
                check_structure(crow, col, self._shape)
                self._arrays = crow, col
        return self._arrays

    def positions(self) -> Tensor:
        """Return the active weights' positions in the flattened mask, ascending int64 ``(nnz,)``.

        Example:
            >>> KernelCSR.full((1, 2, 2)).positions()
            tensor([0, 1, 2, 3])
        """
        return positions_of(self.crow_indices, self.col_indices, self._shape)

    def to_mask(self) -> Tensor:
        """Return the bool mask ``(C_out, C_in // groups, K)``, on the CPU.

        Example:
            >>> KernelCSR.full((1, 1, 2)).to_mask()
            tensor([[[True, True]]])
        """
        mask = torch.zeros(self.numel, dtype=torch.bool, device="cpu")
        mask[self.positions()] = True
        return mask.view(self._shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KernelCSR):
            return NotImplemented
        return self is other or (
            (self._shape, self._block) == (other._shape, other._block)
            and torch.equal(self.crow_indices, other.crow_indices)
            and torch.equal(self.col_indices, other.col_indices)
        )

    def __hash__(self) -> int:
        if self._hash is None:
            arrays = (self.crow_indices.numpy().tobytes(), self.col_indices.numpy().tobytes())
            self._hash = hash((self._shape, self._block, arrays))
        return self._hash

    def __repr__(self) -> str:
        percent = 100 * self.density
        block = f", block={self._block}" if self._block != (1, 1) else ""
        return f"KernelCSR(shape={self._shape}, nnz={self.nnz}, density={percent:.2f} %{block})"

    def __copy__(self) -> KernelCSR:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> KernelCSR:
        return self

    def __reduce__(self) -> tuple[type[KernelCSR], tuple[Any, ...]]:
        return KernelCSR, (self.crow_indices, self.col_indices, self._shape, self._block)


def positions_of(crow_indices: Tensor, col_indices: Tensor, shape: Shape) -> Tensor:
    """Do what ``KernelCSR.positions`` does, on the device of the arrays."""
    return kernels_of(crow_indices, col_indices) * shape[2] + col_indices


def kernels_of(crow_indices: Tensor, col_indices: Tensor) -> Tensor:
    """Return the kernel of each active weight, without waiting for a GPU to count the weights."""
    rows = torch.arange(crow_indices.shape[0] - 1, device=crow_indices.device)
    counts = crow_indices.long().diff()
    return rows.repeat_interleave(counts, output_size=col_indices.shape[0])


__test__ = {"KernelCSR": KernelCSR}  # for doctest, as its __module__ is sparseconv
