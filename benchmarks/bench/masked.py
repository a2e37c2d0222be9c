"""The same network made dense: as in mask-based sparse training, and with PyTorch's best settings.

The masked baseline follows published practice. The weight is a dense parameter, multiplied by its
mask after each optimizer step. Forward and backward passes are dense, and padding copies the input.
Adam's moments of inactive weights accumulate dense gradients. With the best settings, short series
are pooled with a matrix product, which is faster than torch's pooling.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sparseconv.core.pattern import KernelCSR
from sparseconv.dst.update import cosine_decay, prune_and_grow
from sparseconv.models.classifier import Classifier
from sparseconv.nn.block import Block
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.patterned import move
from sparseconv.nn.pooling import ShortAvgPool1d, averaging_matrix
from sparseconv.reference import dense_weight, pad

Network = Callable[[Tensor], Tensor]


class PremaskedConv1d(nn.Module):
    """The dense twin of a ``SparseConv1d``; ``MaskedDST`` zeroes its weight outside a mask.

    For the fastest dense network, it also accepts images ``(N, C, 1, L)``.
    """

    mask: Tensor

    def __init__(self, layer: SparseConv1d) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.dense_weight().detach().clone())
        bias = layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_buffer("mask", layer.pattern.to_mask().to(self.weight.device))
        self.stride, self.dilation = layer.stride[0], layer.dilation[0]
        self.padding, self.padding_mode = layer.resolved_padding, layer.padding_mode
        self.groups, self.regions = layer.groups, layer.regions

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4:
            x = pad(input, self.padding, self.padding_mode)
            return F.conv1d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
        left, right = self.padding
        # One call pads by itself.
        inside = left if self.padding_mode == "zeros" and left == right else 0
        x = input if inside else pad(input, (left, right, 0, 0), self.padding_mode)
        return F.conv2d(
            x, self.weight.unsqueeze(2), self.bias, (1, self.stride), (0, inside),
            (1, self.dilation), self.groups,
        )  # fmt: skip


def masked_copy(
    model: nn.Module, pool: type[nn.AdaptiveAvgPool1d] = nn.AdaptiveAvgPool1d
) -> nn.Module:
    """Copy a network, with a ``PremaskedConv1d`` for every ``SparseConv1d``.

    The copy computes the same function. A ``Block`` becomes an ``nn.Sequential``, and short series
    are pooled with ``pool``. ``model`` is unchanged.
    """
    twin = copy.deepcopy(model)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, SparseConv1d):
            twin.set_submodule(name, PremaskedConv1d(layer))
        elif isinstance(layer, ShortAvgPool1d):
            twin.set_submodule(name, pool(layer.output_size))
    for name, block in list(twin.named_modules()):
        if isinstance(block, Block):
            twin.set_submodule(name, nn.Sequential(OrderedDict(block.named_children())))
    return twin


@dataclass(eq=False)
class MaskedDST:
    """``DSTScheduler`` for a ``masked_copy``: the same pruning and random growth, with masks.

    A hook applies the masks after every ``optimizer.step()``. The settings have the same meaning as
    in ``DSTScheduler``.
    """

    model: InitVar[nn.Module]
    optimizer: InitVar[torch.optim.Optimizer]
    _: KW_ONLY
    update_every: int
    end_step: int
    decay_steps: int
    prune_fraction: float = 0.5
    prune_floor: float = 0.0
    seed: int = 0
    step_count: int = field(default=0, init=False)

    def __post_init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, PremaskedConv1d)]
        self._generator = torch.Generator().manual_seed(self.seed)
        optimizer.register_step_post_hook(lambda *_: self._apply_masks())

    @property
    def prune_fraction_now(self) -> float:
        return cosine_decay(
            self.prune_fraction, self.prune_floor, self.step_count, self.decay_steps
        )

    @torch.no_grad()
    def step(self) -> bool:
        """Count one optimizer step; prune and grow if an update is due."""
        self.step_count += 1
        if self.step_count > self.end_step or self.step_count % self.update_every:
            return False
        for layer in self.layers:
            values = layer.weight[layer.mask]
            pattern, source = prune_and_grow(
                KernelCSR.from_mask(layer.mask),
                values,
                layer.regions,
                self.prune_fraction_now,
                grow="random",
                generator=self._generator,
            )
            (values,) = move([values], source)
            layer.weight.copy_(dense_weight(values, pattern))
            layer.mask.copy_(pattern.to_mask())
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"step_count": self.step_count, "generator": self._generator.get_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        self._generator.set_state(state_dict["generator"])
        self.step_count = state_dict["step_count"]

    @torch.no_grad()
    def _apply_masks(self) -> None:
        for layer in self.layers:
            layer.weight.mul_(layer.mask)


def scripted(network: nn.Module, x: Tensor) -> Network:
    """Let TorchScript trace and freeze a network, fold BatchNorm and pack weights for oneDNN."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and shapes become constants
        traced = torch.jit.trace(network, x)  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(traced)
        try:
            optimized: Network = torch.jit.optimize_for_inference(frozen)
            for _ in range(3):  # the executor profiles, then optimizes
                optimized(x)
        except RuntimeError:  # oneDNN's pooling wants lengths that 50 divides
            optimized = frozen
    return optimized


class _ToImages(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.unsqueeze(2).to(memory_format=torch.channels_last)


class _ToSeries(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.squeeze(2).contiguous()


class MatrixPool(nn.AdaptiveAvgPool1d):
    def forward(self, input: Tensor) -> Tensor:
        length = input.shape[-1]
        if length > ShortAvgPool1d.LONGEST:
            return super().forward(input)
        return input @ averaging_matrix(length, input.dtype, input.device)


def images_of(model: Classifier, *, fold: bool = False) -> nn.Sequential:
    """Build the same dense network, with blocks on ``(N, C, 1, L)`` in channels-last memory.

    ``fold`` folds the norms of a DSN into its convolutions, for inference; without it, train with
    masks. Layers of the blocks that are not converted here must be pointwise.
    """
    twin = masked_copy(model, MatrixPool)
    blocks: nn.Sequential = twin.blocks  # type: ignore[assignment]
    for block in blocks if fold else ():
        for (at, conv), (after, norm) in pairwise(list(block.named_children())):
            if isinstance(norm, nn.BatchNorm1d):
                setattr(block, at, fuse_conv_bn_eval(conv.eval(), norm.eval()))  # type: ignore[type-var]
                setattr(block, after, nn.Identity())
    for name, layer in list(blocks.named_modules()):
        if isinstance(layer, PremaskedConv1d):
            layer.weight.data, layer.mask = map(_taps_first, (layer.weight.data, layer.mask))
        elif type(layer) in _IMAGES:
            blocks.set_submodule(name, _IMAGES[type(layer)](layer))
    blocks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    head: nn.Module = twin.head  # type: ignore[assignment]
    return nn.Sequential(_ToImages(), blocks, _ToSeries(), head)


def _taps_first(weight: Tensor) -> Tensor:
    """Return ``(C_out, C_in, K)`` with the strides of channels-last ``(C_out, C_in, 1, K)``."""
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


def _convolution(conv: nn.Conv1d | nn.ConvTranspose1d) -> nn.Module:
    options: dict[str, Any] = {
        "kernel_size": (1, *conv.kernel_size),
        "stride": (1, *conv.stride),
        "padding": conv.padding if isinstance(conv.padding, str) else (0, *conv.padding),
        "dilation": (1, *conv.dilation),
        "groups": conv.groups,
        "bias": conv.bias is not None,
    }
    kind: type[nn.Module] = nn.Conv2d
    if isinstance(conv, nn.ConvTranspose1d):
        kind, options["output_padding"] = nn.ConvTranspose2d, (0, *conv.output_padding)
    twin = kind(conv.in_channels, conv.out_channels, **options)
    state = conv.state_dict()
    twin.load_state_dict(state | {"weight": state["weight"].unsqueeze(2)})
    return twin


def _norm(layer: nn.BatchNorm1d) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
    norm.load_state_dict(layer.state_dict())
    return norm


_IMAGES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Conv1d: _convolution,
    nn.ConvTranspose1d: _convolution,
    nn.Upsample: lambda layer: nn.Upsample(scale_factor=(1, layer.scale_factor)),
    nn.BatchNorm1d: _norm,
    nn.MaxPool1d: lambda pool: nn.MaxPool2d(
        (1, pool.kernel_size), (1, pool.stride), (0, pool.padding)
    ),
    nn.ReplicationPad1d: lambda pad: nn.ReplicationPad2d((*pad.padding, 0, 0)),
}
