"""The check that a pruned model computes what the whole one does without the removed units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.modules import deepcopy_model
from sparseconv.profiling.stopwatch import copied_arguments
from sparseconv.pruning.channels import Channels, kept_channels
from sparseconv.pruning.data import watching
from sparseconv.pruning.surgery import mask
from sparseconv.pruning.tracing import output_tensors

ADVICE = (
    "the code of the model relies on a number of channels, or moves them in a way that cannot be "
    "followed; name the module where it does in ignore"
)


def check_removal(
    edit: Callable[[nn.Module, Channels, Tensor], object],
    model: nn.Module,
    arguments: tuple[Any, ...],
    channels: Channels,
    kept: Tensor,
) -> None:
    """Compare a model in which units are masked with one from which ``edit`` removes them.

    The layers' inputs are compared, and the outputs: the latter alone may be saturated.

    Args:
        model: gets random weights, since trained ones may be zero and then tell no channels apart.
        arguments: the example; random numbers take the place of a constant tensor.
        channels, kept: what is removed.

    Raises:
        ValueError: more than rounding differs, so wrong channels were removed.
    """
    rng = torch.Generator().manual_seed(0)

    def varied(x: Tensor) -> Tensor:
        if not x.is_floating_point() or (x != x.flatten()[:1]).any():
            return x
        return torch.randn(x.shape, generator=rng).to(x)

    example: tuple[Any, ...] = tree_map_only(Tensor, varied, arguments)
    _randomize(model)
    pruned = deepcopy_model(model)
    edit(pruned, channels, kept)
    mask(model, channels, kept)
    expected = _received(model, example, channels, kept)
    try:
        found = _received(pruned, example, channels)
    except Exception as error:
        raise ValueError(
            f"the pruned model does not run ({type(error).__name__}: {error}): {ADVICE}"
        ) from error
    if len(found) != len(expected) or not all(map(_close, found, expected)):
        raise ValueError(
            f"the pruned model computes something else: {ADVICE} (or it gives nothing finite)"
        )


@torch.no_grad()
def _randomize(model: nn.Module) -> None:
    """Draw parameters and BatchNorm statistics.

    Weights have both signs, and a size by which signals neither grow nor fade. All else is about 1:
    variances must be positive, and positive biases keep ReLUs awake.
    """
    rng = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, tensor in module.named_parameters(recurse=False):
            random = torch.rand(tensor.shape, generator=rng) + 0.5
            if tensor.dim() > 1 or (isinstance(module, SparseConv1d) and name == "values"):
                filters = getattr(module, "out_channels", len(tensor))
                random *= torch.randint(0, 2, tensor.shape, generator=rng) * 2 - 1
                random *= (2 * filters / max(1, tensor.numel())) ** 0.5  # as Kaiming's
            tensor.copy_(random)
        if isinstance(module, nn.BatchNorm1d):
            for statistic in module.buffers(recurse=False):
                if statistic.is_floating_point():
                    statistic.copy_(torch.rand(statistic.shape, generator=rng) + 0.5)


def _received(
    model: nn.Module, arguments: tuple[Any, ...], channels: Channels, kept: Tensor | None = None
) -> list[Tensor]:
    """Run a model; return the inputs of its layers, if masked their kept channels, and outputs.

    All are copies: a layer may work in place.
    """
    found: list[Tensor] = []

    def see(name: str, x: Tensor) -> None:
        layer = channels.layers[name]
        columns = kept_channels(layer.inputs, kept).nonzero()[:, 0].to(x.device)
        found.append(x.clone() if kept is None else x.index_select(layer.channel_dim, columns))

    with watching(model, channels.layers, see):
        outputs = output_tensors(model(*copied_arguments(arguments)))
    return found + [x.clone() for x in outputs]


def _close(got: Tensor, wanted: Tensor) -> bool:
    if got.shape != wanted.shape or not wanted.is_floating_point():
        return got.equal(wanted)
    if wanted.numel() and not wanted.isfinite().any():
        return False
    loose = torch.finfo(wanted.dtype).eps ** 0.5
    scale = float(wanted.nan_to_num(0, 0, 0).abs().max()) if wanted.numel() else 0
    return torch.allclose(got, wanted, rtol=loose, atol=loose * scale, equal_nan=True)
