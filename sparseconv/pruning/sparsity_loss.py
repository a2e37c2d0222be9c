"""Use the loss of dynamic structured pruning to silence filters that a series does not need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparseconv.core.checks import number
from sparseconv.core.modules import check_module
from sparseconv.models import LITE, InceptionTime
from sparseconv.models.classifier import Residual

PUBLISHED_WEIGHT, PUBLISHED_BATCH = 2e-5, 64  # for LITE; for other networks none is public


class Stage(NamedTuple):
    """Name a module whose output should become sparse.

    ``weight`` is the module's weight in the loss. Only its first ``channels`` channels count; by
    default, all do.
    """

    module: str
    weight: float = 1.0
    channels: int | None = None


class InstanceSparsity:
    """Compute the sparsity loss ``weight * sum over stages, series, channels of |F|_2``.

    ``|F|_2`` is the norm over time of one channel's output for one series, so a silent channel
    costs nothing. Inside a ``with`` block, the object records the model's forward passes. Calling
    it returns the loss of the passes since the last call.

    Args:
        model: any module.
        stages: a ``Stage`` or a name for each module; the module's output must be ``(N, C, L)``.
            The default is ``published_stages(model)``.
        weight: the weight of the whole loss, at least 0. The published value is 2e-5, for LITE with
            batches of 64; for batches of B series, multiply it by 64 / B.

    Example:
        >>> from sparseconv.models import LITE
        >>> model, x = LITE(1, 2), torch.randn(4, 1, 30)
        >>> with InstanceSparsity(model) as penalty:
        ...     loss = model(x).square().sum() + penalty()
        >>> train_with_it = "train(model, X, y, recipe, penalty=InstanceSparsity(model))"

    Source: Abdullayev et al., arXiv 2602.12744, 2026.
    """

    def __init__(
        self,
        model: nn.Module,
        stages: Sequence[Stage | str] | None = None,
        weight: float = PUBLISHED_WEIGHT,
    ) -> None:
        self.weight = number("weight", weight)
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight (--silence) must be finite and at least 0, but got {weight}")
        check_module(model)
        found = published_stages(model) if stages is None else stages
        self.stages = tuple(Stage(x) if isinstance(x, str) else Stage(*x) for x in found)
        self._modules = [model.get_submodule(stage.module) for stage in self.stages]
        self._handles: list[Any] = []
        self._terms: list[Tensor] = []

    def __enter__(self) -> InstanceSparsity:
        """Watch the model's forward passes in train mode with gradients."""
        for stage, module in zip(self.stages, self._modules, strict=True):
            self._handles.append(module.register_forward_hook(partial(self._see, stage)))
        return self

    def __exit__(self, *error: object) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._terms.clear()

    def _see(self, stage: Stage, module: nn.Module, arguments: Any, output: Tensor) -> None:
        if module.training and output.requires_grad:
            norms = torch.linalg.vector_norm(output[:, : stage.channels], dim=2)
            # bfloat16 would lose most of this sum over a batch.
            wide = torch.promote_types(norms.dtype, torch.float32)
            self._terms.append(stage.weight * norms.sum(dtype=wide))

    def __call__(self) -> Tensor:
        """Return the loss of the forward passes since the last call, of which there must be one."""
        loss = self.weight * torch.stack(self._terms).sum()
        self._terms.clear()
        return loss


def published_stages(model: nn.Module) -> list[Stage]:
    """Return the paper's stages: three of LITE, or the modules of InceptionTime.

    In LITE's first stage, only the learned filters count. Other networks raise ValueError.

    Example:
        >>> published_stages(LITE(1, 2))[0]
        Stage(module='blocks.2', weight=4.0, channels=96)
    """
    if isinstance(model, LITE):
        learned = sum(conv.out_channels for conv in model.blocks[0][:-1])  # type: ignore[index]
        return [Stage("blocks.2", 4.0, learned), Stage("blocks.6", 2.0), Stage("blocks.10", 1.0)]
    if isinstance(model, InceptionTime):
        stages = []
        for i, block in enumerate(model.blocks):
            body: Any = block.body if isinstance(block, Residual) else block
            prefix = f"blocks.{i}.body" if isinstance(block, Residual) else f"blocks.{i}"
            stages += [Stage(f"{prefix}.{j}") for j in range(len(body))]
            if isinstance(block, Residual):
                stages[-1] = Stage(f"blocks.{i}")  # the shortcut is added after the last module
        return stages
    raise ValueError(
        f"no stages are published for {type(model).__name__}; in stages, name the modules "
        "whose outputs should be sparse, for example the ReLUs"
    )
