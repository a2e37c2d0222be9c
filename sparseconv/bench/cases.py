"""Named cases: what is timed and what is checked are built here, from one description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparseconv import KernelCSR, SparseConv1d
from sparseconv.functional import Geometry
from sparseconv.models import DSN


class Problem(NamedTuple):
    """One convolution with all its tensors."""

    x: Tensor  # (N, C_in, L)
    values: Tensor  # (nnz,)
    grad: Tensor  # (N, C_out, L), gradient of the output
    pattern: KernelCSR
    geometry: Geometry


def layer_problem(layer: SparseConv1d, batch: int, length: int, seed: int = 0) -> Problem:
    """A layer as it is, on random series; the same seed gives the same bits."""
    generator = torch.Generator().manual_seed(seed)
    geometry = Geometry(
        layer.pattern.shape,
        layer.stride[0],
        layer.resolved_padding,
        layer.dilation[0],
        layer.groups,
        layer.padding_mode,
    )
    x = torch.randn(batch, layer.in_channels, length, generator=generator)
    grad_shape = batch, layer.out_channels, geometry.output_length(length)
    grad = torch.randn(grad_shape, generator=generator)
    return Problem(x, layer.values.detach(), grad, layer.pattern, geometry)


@dataclass(frozen=True)
class Case:
    """A sparse layer of a univariate Dynamic Sparse Network, on a batch of series.

    Attributes:
        name: how the case is called everywhere.
        layer: 0 is the first one (1 -> 3 nf channels), 1 any later one (nf -> 3 nf).
        pattern: ``"dsn_prefix"``, the first pattern of a run, or ``"dsn_evolved"``, uniformly
            random inside the regions, which is what random growth tends to.
        length: samples of a series; zero padding keeps it.
        batch: series in a batch.
        sparsity: inactive share of each kernel group's region.
    """

    name: str
    layer: int
    pattern: str
    length: int
    batch: int = 16
    sparsity: float = 0.8

    def build(self, seed: int = 0) -> Problem:
        """Draw the tensors; the same seed gives the same bits."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            init = self.pattern.replace("dsn_", "").replace("evolved", "random")
            model = DSN(1, 2, sparsity=self.sparsity, init=init, padding="centred-zeros")
        return layer_problem(model.sparse_layers()[self.layer], self.batch, self.length, seed)


_LENGTHS = (24, 128, 512, 1024)

CASES = {
    case.name: case
    for case in [
        *(
            Case(f"{pattern}_L{length}", 1, pattern, length)
            for pattern in ("dsn_prefix", "dsn_evolved")
            for length in _LENGTHS
        ),
        *(Case(f"first_layer_L{length}", 0, "dsn_evolved", length) for length in (128, 512)),
    ]
}
