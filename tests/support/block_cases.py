"""Random convolutions whose patterns are of blocks of channels."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch

from sparseconv import KernelCSR
from sparseconv.core.blocks import unit_shape
from sparseconv.core.geometry import Geometry
from sparseconv.testing import Case, random_case


@dataclass(frozen=True)
class BlockCase(Case):
    """A case whose pattern says its block; ``pattern`` is not used."""

    block: tuple[int, int] = (16, 16)

    @property
    def geometry(self) -> Geometry:
        return Geometry.of(super().geometry.shape, **self.options, block=self.block)

    def make_pattern(self) -> KernelCSR:
        shape, generator = self.geometry.shape, torch.Generator().manual_seed(self.seed)
        one = 1 / math.prod(unit_shape(shape, self.block))  # unit at least
        nnz = round(max(one, self.density) * math.prod(shape))
        return KernelCSR.random(shape, nnz, block=self.block, generator=generator)


def random_block_case(rng: random.Random, **fixed: Any) -> BlockCase:
    """Draw a case that tensor cores compute: short, because an interpreter may run it."""
    out, channels = block = rng.choice(((16, 16), (32, 16), (16, 32), (48, 48)))
    groups, more = rng.choice((1, 1, 2)), rng.choice((0, 1, 15, 31))
    sizes = (out + more, channels + more) if groups == 1 else (2 * out, 2 * channels)
    drawn = {"n": rng.choice((1, 2, 3)), "kernel_size": rng.choice((1, 2, 3, 5, 9)),
             "length": rng.choice((9, 16, 23, 33, 65)), "batched": True, "groups": groups,
             "dtype": rng.choice(("float32", "bfloat16", "float16")),
             "out_channels": sizes[0], "in_channels": sizes[1]}  # fmt: skip
    return BlockCase(**vars(random_case(rng, **(drawn | fixed))), block=block)
