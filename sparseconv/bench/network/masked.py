"""The same network as mask-based sparse training runs it: dense convolutions over zeros.

The baseline of every whole-network comparison here follows the published practice: the weight is a
dense parameter, multiplied by its mask after each optimizer step; forward and backward are those of
the dense convolution; the input is padded by a copy; Adam's moments of inactive weights keep
accumulating dense gradients.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.core.pattern import KernelCSR
from sparseconv.dst.update import cosine_decay, prune_and_grow
from sparseconv.nn.block import Block
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.pooling import ShortAvgPool1d
from sparseconv.nn.rewiring import move
from sparseconv.reference import dense_weight, pad


class PremaskedConv1d(nn.Module):
    """The dense twin of a ``SparseConv1d``, whose weight ``MaskedDST`` keeps zero outside a mask.

    ``forward`` multiplies nothing by the mask, and the weight's gradient is the whole dense one.
    Also of images ``(N, C, 1, L)``, as the fastest dense network has them.
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


def masked_copy(model: nn.Module) -> nn.Module:
    """Copy a network, with a ``PremaskedConv1d`` in the place of every ``SparseConv1d``.

    The copy computes the same function, with torch's own modules alone: a ``Block`` becomes the
    ``nn.Sequential`` that it is, the pooling of short series torch's. ``model`` is left as it was.
    """
    twin = copy.deepcopy(model)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, SparseConv1d):
            twin.set_submodule(name, PremaskedConv1d(layer))
        elif isinstance(layer, ShortAvgPool1d):
            twin.set_submodule(name, nn.AdaptiveAvgPool1d(layer.output_size))
    for name, block in list(twin.named_modules()):
        if isinstance(block, Block):
            twin.set_submodule(name, nn.Sequential(OrderedDict(block.named_children())))
    return twin


@dataclass(eq=False)
class MaskedDST:
    """``DSTScheduler`` for a ``masked_copy``: the same pruning and random growth, on masks.

    Masks are applied after every ``optimizer.step()``, through a hook, so that the weights are
    never seen unmasked. Its settings are those of ``DSTScheduler``.
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
        """Count one optimizer step and, if it is time, prune and grow."""
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
            layer.weight.copy_(dense_weight(move(values, source), pattern))
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
