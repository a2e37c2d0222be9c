"""Random convolutions whose patterns are of blocks of channels."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch

from sparseconv import KernelCSR
from sparseconv.core.blocks import unit_shape
from sparseconv.testing import Case, random_case

BLOCKS = ((16, 16), (32, 16), (16, 32), (48, 48))


@dataclass(frozen=True)
class BlockCase(Case):
    """A case whose pattern says its block; ``pattern`` is not used."""

    block: tuple[int, int] = (16, 16)

    def make_pattern(self) -> KernelCSR:
        shape, generator = self.geometry.shape, torch.Generator().manual_seed(self.seed)
        one = 1 / math.prod(unit_shape(shape, self.block))  # unit at least
        nnz = round(max(one, self.density) * math.prod(shape))
        return KernelCSR.random(shape, nnz, block=self.block, generator=generator)


def random_block_case(rng: random.Random, **fixed: Any) -> BlockCase:
    """Draw a case that tensor cores compute: short, because an interpreter may run it."""
    block, groups = rng.choice(BLOCKS), rng.choice((1, 1, 2))
    more = (0, block[0]) if groups > 1 else (0, 1, 15, 31)
    drawn = {
        "n": rng.choice((1, 2, 3)),
        "batched": True,
        "groups": groups,
        "out_channels": groups * (block[0] + rng.choice(more)),
        "in_channels": groups * (block[1] + (rng.choice(more) if groups == 1 else 0)),
        "kernel_size": rng.choice((1, 2, 3, 5, 9)),
        "length": rng.choice((9, 16, 23, 33, 65)),
        "dtype": rng.choice(("float32", "bfloat16", "float16")),
    }
    case = random_case(rng, **(drawn | fixed))
    return BlockCase(**vars(case), block=block)
