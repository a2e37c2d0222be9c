"""The Dynamic Sparse Network (Xiao et al., NeurIPS 2022) for time series classification."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from sparseconv.core.blocks import Region, checked_block, unit_shape
from sparseconv.core.checks import count, share
from sparseconv.core.geometry import PaddingMode
from sparseconv.core.pattern import KernelCSR
from sparseconv.models.classifier import Classifier
from sparseconv.nn.block import Block
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.pooling import POOLED, ShortAvgPool1d
from sparseconv.ops.backends import Backend

Init = Literal["prefix", "random"]
Around = Literal["right-replicate", "centred-zeros", "centred-replicate"]
INITS: tuple[Init, ...] = get_args(Init)
PADDINGS: tuple[Around, ...] = get_args(Around)
WIDTH = 3  # a module has WIDTH * nf channels, for any number of kernel groups


@dataclass(frozen=True)
class DSNCost:
    """Parameters and operations of a network for one series.

    Attributes:
        params: active weights, and the parameters of 1x1 convolutions and BatchNorm.
        flops_paper: operations as the paper counts them, ``2 * C_in - 1`` per tap of each output,
            with the head's convolution and BatchNorm counted twice.
        macs_executed: multiply-adds of all convolutions, one per active weight and time step.
        params_dense, flops_paper_dense, macs_dense: the same numbers with every tap active.

    Source: Xiao et al. 2022 (DSN) and, for ``flops_paper``, the counter in its implementation.
    """

    params: int
    params_dense: int
    flops_paper: float
    flops_paper_dense: float
    macs_executed: int
    macs_dense: int


class DSN(Classifier):
    """Four modules of sparse convolutions with long kernels, and a small dense head.

    A module is [1x1 convolution to ``nf`` channels, unless its input has one channel] → sparse
    convolution to ``3 * nf`` channels → BatchNorm → ReLU. The output channels form ``n_groups``
    kernel groups. Group i of 1..n_groups has its active weights among the first
    ``(kernel_size // n_groups) * i`` taps. Patterns and parameters are drawn with torch's global
    generator.

    Args:
        in_channels: channels of a series.
        n_classes: number of classes.
        sparsity: inactive share of each group's region, in [0, 1). 0 selects the paper's dense
            network, with all taps active and no groups.
        nf: channels between modules; each module outputs ``3 * nf`` channels.
        kernel_size: taps of the sparse convolutions.
        depth: number of modules.
        n_groups: number of kernel groups; 1 removes them (the paper's ablation).
        init: initial pattern. ``"prefix"`` activates the first taps of every kernel; ``"random"``
            draws taps uniformly from the region.
        padding: ``"right-replicate"`` repeats the last time step, so taps look forward;
            ``"centred-zeros"`` is the paper's choice for the UCR 2018 archive;
            ``"centred-replicate"`` repeats the first and the last time step.
        block: channels ``(out, in)`` that share taps, or one int for both, as in ``KernelCSR``. A
            layer with fewer input channels than the block keeps single weights.
        backend: backend of the sparse convolutions, ``"auto"`` or one that is available.

    Shape:
        Input ``(N, in_channels, L)``, any L >= 1; output ``(N, n_classes)``, log-probabilities.

    Raises:
        TypeError, ValueError: an argument has the wrong type, or is out of range.

    Example:
        >>> model = DSN(in_channels=9, n_classes=6)
        >>> model(torch.zeros(2, 9, 128)).shape
        torch.Size([2, 6])
        >>> model.cost(n_timepoints=128).params
        160126

    Source: Xiao et al., "Dynamic Sparse Network for Time Series Classification: Learning What to
    'See'", NeurIPS 2022, section 4.
    """

    def __init__(
        self,
        in_channels: int,
        n_classes: int,
        *,
        sparsity: float = 0.8,
        nf: int = 47,
        kernel_size: int = 39,
        depth: int = 4,
        n_groups: int = 3,
        init: Init = "prefix",
        padding: Around = "right-replicate",
        block: int | tuple[int, int] = 1,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(in_channels, n_classes)
        sparsity = share("sparsity", sparsity, below_one=True)
        nf = count("nf", nf)
        kernel_size = count("kernel_size", kernel_size)
        if init not in INITS:
            raise ValueError(f"init must be one of {INITS}, but got {init!r}")
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {PADDINGS}, but got {padding!r}")
        depth, channels = count("depth", depth), WIDTH * nf
        mode: PaddingMode = "zeros" if padding == "centred-zeros" else "replicate"
        around = (0, kernel_size - 1)
        if padding.startswith("centred"):
            around = ((kernel_size - 1) // 2, kernel_size // 2)
        block = checked_block(block, (channels, nf, kernel_size))
        n_groups = count("n_groups", n_groups)
        regions = _regions(channels, kernel_size, n_groups, sparsity, block[0])

        blocks = []
        for index in range(depth):
            inputs = self.in_channels if index == 0 else channels
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            if inputs > 1:
                layers["bottleneck"] = nn.Conv1d(inputs, nf, 1, bias=False)
                inputs = nf
            shape = (channels, inputs, kernel_size)
            own_block = block if inputs >= block[1] else (1, 1)
            pattern = _first_pattern(shape, regions, sparsity, init, own_block)
            conv = SparseConv1d(
                inputs, channels, kernel_size, padding=around, bias=False, padding_mode=mode,
                pattern=pattern, backend=backend,
            )  # fmt: skip
            conv.regions = regions
            layers["conv"] = conv
            layers["norm"] = nn.BatchNorm1d(channels)
            layers["relu"] = nn.ReLU(inplace=True)  # BatchNorm's backward reads its input only
            blocks.append(Block(layers))
        self.blocks = nn.Sequential(*blocks)
        self.head = Block(
            ShortAvgPool1d(),
            nn.Conv1d(channels, n_classes, 1, bias=False),
            nn.BatchNorm1d(n_classes),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.LogSoftmax(dim=1),
        )

    def sparse_layers(self) -> list[SparseConv1d]:
        """Return the sparse convolutions, from first to last."""
        return [layer for layer in self.blocks.modules() if isinstance(layer, SparseConv1d)]

    def cost(self, n_timepoints: int) -> DSNCost:
        """Count parameters and operations for a series of ``n_timepoints`` time steps.

        Do this before the sparse layers are replaced.

        Example:
            >>> cost = DSN(9, 6).cost(128)
            >>> round(cost.flops_paper / 1e6, 2), round(cost.macs_executed / 1e6, 2)
            (40.64, 20.28)
        """
        length = count("n_timepoints", n_timepoints)
        layers = self.sparse_layers()
        # In a pruned network each layer has its own width.
        widths, classes = [layer.out_channels for layer in layers], self.n_classes
        channels = widths[-1]
        bottlenecks = [m for m in self.blocks.modules() if isinstance(m, nn.Conv1d)]
        params = sum(parameter.numel() for parameter in self.parameters())

        macs_1x1 = length * sum(conv.weight.numel() for conv in bottlenecks)
        macs_1x1 += POOLED * channels * classes

        flops_rest = 5 * sum(widths) * length  # BatchNorm and ReLU
        flops_rest += sum(length * (2 * c.in_channels - 1) * c.out_channels for c in bottlenecks)
        flops_rest += (length // POOLED + 1) * channels * POOLED
        flops_rest += 2 * (POOLED * (2 * channels - 1) * classes + 4 * POOLED * classes)
        flops_rest += (POOLED + 1) * classes

        def flops(layer: SparseConv1d, weights: int) -> float:
            return length * (2 * layer.in_channels - 1) * weights / layer.in_channels

        return DSNCost(
            params=params,
            params_dense=params + sum(x.pattern.numel - x.pattern.nnz for x in layers),
            flops_paper=flops_rest + sum(flops(x, x.pattern.nnz) for x in layers),
            flops_paper_dense=flops_rest + sum(flops(x, x.pattern.numel) for x in layers),
            macs_executed=macs_1x1 + length * sum(x.pattern.nnz for x in layers),
            macs_dense=macs_1x1 + length * sum(x.pattern.numel for x in layers),
        )


def _regions(
    channels: int, kernel_size: int, n_groups: int, sparsity: float, size: int
) -> tuple[Region, ...]:
    """Split the channels into groups of whole blocks of ``size`` channels."""
    if sparsity == 0:
        return (Region((0, channels), (0, kernel_size)),)
    groups = torch.arange(channels)[::size].chunk(n_groups)
    if len(groups) < n_groups or kernel_size < n_groups:
        raise ValueError(
            f"n_groups={n_groups} is too large for {channels} output channels (3 * nf), blocks of "
            f"{size} and kernel_size={kernel_size}: each group needs at least one block, and at "
            "least one tap more than the previous group; choose fewer groups"
        )
    taps = kernel_size // n_groups
    return tuple(
        Region((int(group[0]), min(int(group[-1]) + size, channels)), (0, taps * (i + 1)))
        for i, group in enumerate(groups)
    )


def _first_pattern(
    shape: tuple[int, int, int],
    regions: tuple[Region, ...],
    sparsity: float,
    init: str,
    block: tuple[int, int],
) -> KernelCSR:
    """Return a pattern with ``int(size * (1 - sparsity))`` active units in each region."""
    units = _, in_channels, kernel_size = unit_shape(shape, block)
    if sparsity == 0:
        return KernelCSR.from_units(KernelCSR.full(units), shape, block)
    density = round(1 - sparsity, 12)  # 1 - 0.8 is 0.19999999999999996, which truncates wrongly
    positions = []
    for (top, bottom), (_, taps) in regions:
        first, end = top // block[0], -(-bottom // block[0])
        kernels = (end - first) * in_channels
        nnz = int(kernels * taps * density)
        # Numbered tap by tap, so the first nnz positions are the same first taps of all kernels.
        chosen = torch.arange(nnz) if init == "prefix" else torch.randperm(kernels * taps)[:nnz]
        tap, kernel = chosen // kernels, chosen % kernels
        positions.append((first * in_channels + kernel) * kernel_size + tap)
    chosen = torch.cat(positions).sort().values
    return KernelCSR.from_units(KernelCSR.from_positions(chosen, units), shape, block)
