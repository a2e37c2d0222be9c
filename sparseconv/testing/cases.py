"""Random convolutions, described by numbers.

>>> case = random_case(random.Random(0))
>>> eval(repr(case)) == case
True
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparseconv.core.checks import checked_shape
from sparseconv.core.geometry import DTYPES, Geometry, Padding, PaddingMode
from sparseconv.core.pattern import KernelCSR

# Below, at and just past the vector widths (2 to 16 numbers), their multiples, and the longest
# piece of a series that a lane takes (28).
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 24, 25, 27, 28, 29, 31, 32, 33, 47, 48, 49, 63,
           64, 65, 97, 130)  # fmt: skip


PATTERNS = ("random", "empty_row", "one_tap", "one_dense_row", "dsn_prefix", "dsn_evolved",
            "last_tap_only", "blocks", "none", "full")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One convolution; its ``repr`` evaluates to the same case.

    Example:
        >>> case = Case(n=2, in_channels=4, out_channels=6, kernel_size=3, length=10)
        >>> case.tensors().input.shape
        torch.Size([2, 4, 10])
    """

    n: int
    in_channels: int
    out_channels: int
    kernel_size: int
    length: int
    stride: int = 1
    padding: Padding = 0
    dilation: int = 1
    groups: int = 1
    padding_mode: PaddingMode = "zeros"
    dtype: str = "float32"
    pattern: str = "random"  # one of PATTERNS
    density: float = 0.3
    bias: bool = True
    batched: bool = True  # False: the input is (C_in, L_in), and n must be 1
    integers: bool = False  # data of -8 ... 8 without 0, so that every sum is exact
    seed: int = 0

    @property
    def output_length(self) -> int:
        """Return ``L_out``, which is below one if the kernel does not fit the input."""
        return self.geometry.output_length(self.length)

    @property
    def is_valid(self) -> bool:
        """Return whether the fields are in range and consistent."""
        if self.n < 0 or (self.n != 1 and not self.batched) or self.groups < 1:
            return False
        if self.in_channels % self.groups or getattr(torch, self.dtype, None) not in DTYPES:
            return False
        try:
            self.geometry.check_length(self.length)
        except ValueError:
            return False
        return True

    @property
    def options(self) -> dict[str, Any]:
        """Return keyword arguments for ``sparse_conv1d``."""
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        return {name: getattr(self, name) for name in names}

    @property
    def geometry(self) -> Geometry:
        """Return the geometry; raise ValueError if the fields are inconsistent."""
        shape = (self.out_channels, self.in_channels // self.groups, self.kernel_size)
        return Geometry.of(checked_shape(shape), **self.options)

    def make_pattern(self) -> KernelCSR:
        """Build the pattern, which is the same on every call."""
        shape = self.geometry.shape
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(self.seed)) < self.density
        taps = torch.arange(self.kernel_size).expand(shape)
        if self.pattern == "empty_row":
            mask[0], mask[-1, -1] = False, False
        elif self.pattern == "one_tap":
            mask = torch.zeros(shape, dtype=torch.bool)
            mask.view(-1)[self.seed % mask.numel()] = True
        elif self.pattern == "one_dense_row":
            mask = torch.zeros(shape, dtype=torch.bool)
            mask[self.seed % self.out_channels, self.seed % shape[1]] = True
        elif self.pattern == "last_tap_only":
            mask = taps == self.kernel_size - 1
        elif self.pattern in ("dsn_prefix", "dsn_evolved"):
            # Each third of the output channels may use one, two or three thirds of the taps.
            chunk = torch.arange(self.out_channels) // -(-self.out_channels // 3)
            region = taps < (self.kernel_size // 3 * (chunk + 1)).clamp(min=1)[:, None, None]
            share = self.density * self.kernel_size
            mask = region & (taps < share if self.pattern == "dsn_prefix" else mask)
        elif self.pattern == "blocks":  # of 16 x 16 channels that share their taps
            leaders = mask[::16, ::16].repeat_interleave(16, 0).repeat_interleave(16, 1)
            mask = leaders[: shape[0], : shape[1]]
        elif self.pattern in ("none", "full"):
            mask = torch.full(shape, self.pattern == "full")
        return KernelCSR.from_mask(mask)

    def tensors(self) -> Tensors:
        """Draw the data, which are the same on every call."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            if self.integers:
                magnitude = torch.randint(1, 9, shape, generator=generator)
                sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
                return (magnitude * sign).to(getattr(torch, self.dtype))
            return torch.randn(shape, generator=generator).to(getattr(torch, self.dtype))

        batch = (self.n,) if self.batched else ()
        return Tensors(
            draw(*batch, self.in_channels, self.length),
            draw(self.make_pattern().nnz),
            draw(self.out_channels) if self.bias else None,
            draw(*batch, self.out_channels, self.output_length),
        )


class Tensors(NamedTuple):
    """The data of one case; ``grad`` is the output's gradient."""

    input: Tensor
    values: Tensor
    bias: Tensor | None
    grad: Tensor


def random_case(rng: random.Random, **fixed: Any) -> Case:
    """Draw a valid case; ``fixed`` sets fields.

    Raises:
        ValueError: no valid case was found.

    Example:
        >>> random_case(random.Random(1), dtype="float64", groups=2).groups
        2
    """
    for _ in range(10_000):  # most draws are valid where no field is given
        groups = rng.choice((1, 1, 1, 2, 3))
        batched = rng.random() < 0.9
        kernel_size = rng.choice((1, 2, 3, 4, 5, 7, 9, 13, 39))
        stride = rng.choice((1, 1, 1, 2, 3))
        left, right = rng.randint(0, kernel_size), rng.randint(0, kernel_size)
        spellings: list[Padding] = [0, left, (left,), (left, right), (0, kernel_size - 1), "valid"]
        drawn: dict[str, Any] = {
            "n": rng.choice((0, 1, 1, 2, 3, 5)) if batched else 1,
            "in_channels": groups * rng.randint(1, 4),
            "out_channels": groups * rng.randint(1, 7),
            "kernel_size": kernel_size,
            "length": rng.choice(LENGTHS),
            "stride": stride,
            "padding": rng.choice(spellings + ["same"] * (stride == 1)),
            "dilation": rng.choice((1, 1, 1, 2, 3, 5, 17)),
            "groups": groups,
            "padding_mode": rng.choice(("zeros", "replicate", "reflect", "circular")),
            "dtype": rng.choice(("float32", "float32", "float64", "bfloat16", "float16")),
            "pattern": rng.choice(("random", *PATTERNS)),
            "density": rng.choice((0.05, 0.15, 0.3, 0.6)),
            "bias": rng.random() < 0.5,
            "batched": batched,
            "seed": rng.randrange(10**6),
        }
        case = Case(**(drawn | fixed))
        if case.is_valid and case.pattern in PATTERNS:
            return case
    raise ValueError(
        f"expected fields that allow a valid case, but got {fixed}; pass other or fewer fields"
    )
