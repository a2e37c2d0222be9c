"""Define the geometry of a convolution: all its arguments except the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch

from sparseconv.core.blocks import Block, Shape, checked_block
from sparseconv.core.checks import ArgumentError, checked_shape, integer

PaddingMode = Literal["zeros", "replicate", "reflect", "circular"]
PADDING_MODES: tuple[PaddingMode, ...] = get_args(PaddingMode)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Padding = int | tuple[int, ...] | Literal["same", "valid"]


class Geometry(NamedTuple):
    """Hold all arguments of one convolution except its tensors, as the ints that every op takes.

    The fields are those of ``Geometry`` in csrc/conv1d.h, in order, and the pattern's block.

    Attributes:
        group_channels: ``C_in // groups``.
        left, right: the padding, in time steps.
        mode: the index of ``padding_mode`` in ``PADDING_MODES``.
        block_out, block_in: see ``KernelCSR``.

    Example:
        >>> geometry = Geometry.of((8, 4, 5), 2, "valid", 1, 1, "zeros")
        >>> geometry.padding, geometry.output_length(30)
        ((0, 0), 13)
    """

    out_channels: int
    group_channels: int
    kernel_size: int
    stride: int
    left: int
    right: int
    dilation: int
    groups: int
    mode: int
    block_out: int = 1
    block_in: int = 1

    @property
    def shape(self) -> Shape:
        """Return ``(C_out, C_in // groups, K)``."""
        return self[:3]

    @property
    def padding(self) -> tuple[int, int]:
        return self.left, self.right

    @property
    def padding_mode(self) -> PaddingMode:
        return PADDING_MODES[self.mode]

    @property
    def block(self) -> Block:
        return self.block_out, self.block_in

    @classmethod
    def of(
        cls,
        shape: tuple[int, int, int],
        stride: int | tuple[int, ...],
        padding: Padding,
        dilation: int | tuple[int, ...],
        groups: int,
        padding_mode: PaddingMode,
        *,
        block: Block = (1, 1),
    ) -> Geometry:
        """Resolve all forms of the arguments, and check them.

        Raises:
            TypeError, ArgumentError: arguments of the wrong type or out of range.
        """
        stride, dilation = single("stride", stride, 1), single("dilation", dilation, 1)
        groups = single("groups", groups, 1)
        out_channels, group_channels, kernel_size = shape
        left, right = resolve_padding(padding, kernel_size, dilation, stride)
        if out_channels % groups:
            amount = "at least" if out_channels < groups else "divisible by"
            raise ArgumentError(
                f"Given groups={groups}, expected weight to be {amount} {groups} at dimension 0, "
                f"but got weight of size {list(shape)} instead"
            )
        if padding_mode not in PADDING_MODES:
            raise ArgumentError(
                f"padding_mode must be one of {set(PADDING_MODES)}, "
                f"but got padding_mode={padding_mode!r}"
            )
        # The transposed pattern has one row per kernel and stride phase, counted in int32.
        if max(left, right, stride * out_channels * group_channels) >= 2**31:
            raise ArgumentError(
                f"padding and stride * kernels must be below 2**31, but got padding {left, right} "
                f"and stride {stride} with {out_channels * group_channels} kernels"
            )
        mode = PADDING_MODES.index(padding_mode)
        return cls(
            out_channels, group_channels, kernel_size, stride, left, right, dilation, groups, mode,
            *block,
        )  # fmt: skip

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> Geometry:
        """Check the argument of an op as ``of`` does."""
        if len(numbers) != len(cls._fields) or not 0 <= numbers[8] < len(PADDING_MODES):
            raise ArgumentError(
                "expected geometry [C_out, C_in // groups, K, stride, left, right, dilation, "
                f"groups, padding_mode in 0 .. {len(PADDING_MODES) - 1}, block's outputs and "
                f"inputs], but got {list(numbers)}"
            )
        given = cls(*numbers)
        how = given.stride, given.padding, given.dilation, given.groups, given.padding_mode
        shape = checked_shape(given.shape)
        return cls.of(shape, *how, block=checked_block(given.block, shape))

    @classmethod
    def of_transposed(
        cls,
        shape: tuple[int, int, int],
        stride: int | tuple[int, ...],
        padding: int | tuple[int, ...],
        output_padding: int | tuple[int, ...],
        groups: int,
        dilation: int | tuple[int, ...],
        *,
        block: Block = (1, 1),
    ) -> tuple[Geometry, int]:
        """Return the convolution that ``F.conv_transpose1d`` transposes, and its output padding.

        ``shape`` is that of the weight, ``(in_channels, out_channels // groups, K)``. Errors are as
        in ``of``.
        """
        if isinstance(padding, str) or (isinstance(padding, (tuple, list)) and len(padding) != 1):
            raise TypeError(f"padding must be an int or a tuple of one int, but got {padding!r}")
        geometry = cls.of(shape, stride, padding, dilation, groups, "zeros", block=block)
        extra = single("output_padding", output_padding, 0)
        if extra >= max(geometry.stride, geometry.dilation):
            raise ArgumentError(
                "output padding must be smaller than either stride or dilation, but got "
                f"output_padding: {extra} stride: {geometry.stride} dilation: {geometry.dilation}"
            )
        return geometry, extra

    def check_length(self, length: int) -> None:
        """Reject an input length that does not fit this geometry, in the words of ``F.conv1d``.

        Raises:
            ArgumentError: the kernel or the padding does not fit the input.
        """
        if length < 1:
            raise ArgumentError(f"expected an input of at least one sample, but got {length}")
        # Reflection does not repeat the border time step; a circle wraps around at most once.
        mode = self.padding_mode
        room = length - 1 if mode == "reflect" else length
        if mode in ("reflect", "circular") and max(self.padding) > room:
            raise ArgumentError(
                f"Padding size should be less than or equal to {room} for padding_mode="
                f"{mode!r} at input length {length}, but got padding {self.padding}"
            )
        padded = length + self.left + self.right
        reach = self.dilation * (self.kernel_size - 1) + 1
        if padded < reach:
            raise ArgumentError(
                f"Calculated padded input size per channel: ({padded}). Kernel size: ({reach}). "
                "Kernel size can't be greater than actual input size"
            )

    def output_length(self, input_length: int) -> int:
        """Return ``L_out``, which is below 1 if the kernel does not fit the input."""
        padded = input_length + self.left + self.right
        return (padded - self.dilation * (self.kernel_size - 1) - 1) // self.stride + 1

    def transposed_length(self, length: int, output_padding: int) -> int:
        """Return the output length of the transposed convolution."""
        reach = self.dilation * (self.kernel_size - 1) + 1
        found = (length - 1) * self.stride + reach + output_padding - self.left - self.right
        if found < 0:
            raise ArgumentError(
                f"Given input size per channel: ({length}). Calculated output size per channel: "
                f"({found}). Output size is too small"
            )
        return found


def single(name: str, value: int | tuple[int, ...], least: int) -> int:
    """Accept an int or a 1-tuple, as ``nn.Conv1d`` does, of at least ``least``."""
    if isinstance(value, (tuple, list)) and len(value) == 1:
        value = value[0]
    pair = ", a pair (left, right), 'same' or 'valid'" if name == "padding" else ""
    number = integer(f"{name} must be an int or a tuple of one int{pair}", value)
    if number < least:
        if name == "dilation":
            raise ArgumentError(f"dilation should be greater than zero, but got {number}")
        word = "negative" if least == 0 else "non-positive"
        raise ArgumentError(f"{word} {name} is not supported: expected >= {least}, got {number}")
    return number


def resolve_padding(
    padding: Padding, kernel_size: int, dilation: int = 1, stride: int = 1
) -> tuple[int, int]:
    """Convert any form of ``padding`` to ``(left, right)`` in time steps.

    Accept what ``nn.Conv1d`` accepts, and a pair.

    Raises:
        TypeError, ArgumentError: anything else; ``"same"`` with a stride; a negative number.

    Example:
        >>> resolve_padding("same", kernel_size=4), resolve_padding((0, 3), kernel_size=4)
        ((1, 2), (0, 3))
    """
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0
        if padding != "same":
            raise ArgumentError(
                f"Invalid padding string {padding!r}, should be one of 'valid', 'same'"
            )
        if stride != 1:
            raise ArgumentError("padding='same' is not supported for strided convolutions")
        total = dilation * (kernel_size - 1)
        return total // 2, total - total // 2
    if isinstance(padding, (tuple, list)) and len(padding) == 2:
        return single("padding", padding[0], 0), single("padding", padding[1], 0)
    both = single("padding", padding, 0)
    return both, both
