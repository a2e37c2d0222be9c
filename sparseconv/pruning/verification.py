"""Check that a pruned model computes the same as the whole one with masked units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sparseconv.core.modules import deepcopy_model
from sparseconv.nn.conv import SparseConv1d
from sparseconv.pruning.channels import NORMS, Channels, UnitSet, kept_channels
from sparseconv.pruning.operations import SameDraws
from sparseconv.pruning.surgery import mask, remove
from sparseconv.running import close, copied_arguments, output_tensors, watching

Edit = Callable[[nn.Module, Channels, Tensor], object]
RELIES = (
    "the code relies on the number of channels, draws integers, or moves channels in a way that "
    "cannot be followed"
)
TRAIN = " in train mode"
REPEATS = range(5)  # random parts of a model may not act in one run


def removed_wrongly(
    edit: Edit, model: nn.Module, arguments: tuple[Any, ...], channels: Channels, kept: Tensor
) -> dict[UnitSet, str]:
    """Compare a model in which units are masked with one from which ``edit`` removes them.

    ``prune_filters`` describes the comparison. It includes the inputs of layers, because outputs
    alone may be saturated. It uses a copy of the model with random weights, because trained ones
    may be zero and hide differences between channels.

    Returns:
        The sets of units that cannot be removed, each with the reason.
    """
    why = _difference(edit, model, arguments, channels, kept)
    if why is None:
        return {}
    so_far = torch.ones_like(kept)
    if any(_difference(remove, model, arguments, channels, so_far) for _ in REPEATS):
        raise ValueError(
            "expected the same outputs each time the model runs on the same input, but they depend "
            "on its state, or on random numbers from a source other than torch, so pruning cannot "
            "be verified; make the model deterministic"
        )
    failed = {}
    for group in channels.sets:
        trial = so_far.clone()
        trial[group.units] = kept[group.units]
        if (found := _difference(remove, model, arguments, channels, trial)) is None:
            so_far = trial
        else:
            failed[group] = f"without some of its filters, {found}: {RELIES}"
    if not failed:
        raise ValueError(f"{why}: {RELIES}; name the module with that code in ignore")
    return failed


def _difference(
    edit: Edit, model: nn.Module, arguments: tuple[Any, ...], channels: Channels, kept: Tensor
) -> str | None:
    for name, layer in channels.layers.items():
        if not kept_channels(layer.inputs, kept).any():
            return f"{name!r} would have no input channels"
    rng = torch.Generator().manual_seed(0)

    def varied(x: Tensor) -> Tensor:
        if not x.is_floating_point() or (x != x.flatten()[:1]).any():
            return x
        return torch.randn(x.shape, generator=rng).to(x)

    example: tuple[Any, ...] = tree_map_only(Tensor, varied, arguments)
    whole = deepcopy_model(model)
    _randomize(whole)
    pruned = deepcopy_model(whole)
    edit(pruned, channels, kept)
    mask(whole, channels, kept)
    for mode in ("", TRAIN):
        try:
            expected = _received(whole, example, channels, kept, bool(mode))
        except Exception:
            if mode:  # the model's code may need targets: then nothing can be compared
                return None
            raise
        try:
            found = _received(pruned, example, channels, None, bool(mode))
        except Exception as error:  # the model may run any code
            return f"the model does not run{mode} ({type(error).__name__}: {error})"
        if len(found) != len(expected) or not all(map(close, found, expected)):
            return f"the model computes different outputs{mode}"
    return None


@torch.no_grad()
def _randomize(model: nn.Module) -> None:
    """Draw parameters and BatchNorm statistics."""
    rng = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, tensor in module.named_parameters(recurse=False):
            # Positive biases keep ReLUs active.
            random = torch.rand(tensor.shape, generator=rng) + 0.5
            if tensor.dim() > 1 or (isinstance(module, SparseConv1d) and name == "values"):
                filters = getattr(module, "out_channels", len(tensor))
                random *= torch.randint(0, 2, tensor.shape, generator=rng) * 2 - 1
                # Kaiming's scale, which neither amplifies nor damps signals.
                random *= (2 * filters / max(1, tensor.numel())) ** 0.5
            tensor.copy_(random)
        if isinstance(module, NORMS):
            for statistic in module.buffers(recurse=False):
                if statistic.is_floating_point():  # variances must be positive
                    statistic.copy_(torch.rand(statistic.shape, generator=rng) + 0.5)


def _received(
    model: nn.Module, arguments: tuple[Any, ...], channels: Channels, kept: Tensor | None,
    train: bool,
) -> list[Tensor]:  # fmt: skip
    """Run a model; return copies of the kept inputs of its layers, and of its outputs.

    They are copies because a layer may work in place.
    """
    found: list[Tensor] = []

    def see(name: str, x: Tensor) -> None:
        layer = channels.layers[name]
        columns = kept_channels(layer.inputs, kept).nonzero()[:, 0].to(x.device)
        found.append(x.clone() if kept is None else x.index_select(layer.channel_dim, columns))

    with watching(model, channels.layers, see), SameDraws():
        for module in model.train().modules() if train else ():
            if isinstance(module, NORMS):  # in eval mode they accept single values
                module.eval()
        out = model(*copied_arguments(model, arguments))
    outputs = output_tensors(out) if not train else tree_leaves(out)
    return found + [x.clone() for x in outputs if isinstance(x, Tensor)]
