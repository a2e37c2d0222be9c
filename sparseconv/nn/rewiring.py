"""Move values, and tensors with one entry per value, when a pattern changes."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from sparseconv.core.pattern import KernelCSR, check_pattern_type

_FORMER_NNZ: MutableMapping[Tensor, set[int]] = WeakIdKeyDictionary()  # by values


def check_pattern(pattern: KernelCSR, shape: tuple[int, int, int], groups: int) -> None:
    """Reject all but a pattern of this shape whose blocks do not cross a group boundary."""
    check_pattern_type(pattern)
    if pattern.shape != shape:
        raise ValueError(
            f"pattern must have the weight's shape, here {shape}, but got {pattern.shape}"
        )
    rows, size = shape[0] // groups, pattern.block[0]
    if groups > 1 and rows % size:
        raise ValueError(
            f"a group of {rows} channels must consist of whole blocks, but a block has {size} "
            f"channels; choose a block size that divides {rows}, or block=1"
        )


def check_movable(layer: nn.Module) -> None:
    """Reject a layer whose values cannot follow a change of pattern."""
    values = layer._parameters.get("values")
    if values is None:
        raise RuntimeError(
            "the values of this layer are computed from other tensors, by pruning or a "
            "parametrization; call torch.nn.utils.prune.remove(layer, 'values') or "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'values') before changing "
            "the pattern"
        )
    if not holds_values(layer):
        raise NotImplementedError(
            "the values of this layer are sharded (FSDP), so its pattern cannot change: use "
            "DistributedDataParallel, or change the pattern before sharding"
        )
    check_mode(values)


def check_mode(values: Tensor) -> None:
    """Reject changes outside inference mode to values that were created in it."""
    if values.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            "a layer created in torch.inference_mode() can be changed only in that mode; create "
            "the layer outside it"
        )


def holds_values(layer: nn.Module) -> bool:
    """Return whether the values are a parameter that lies entirely in this process."""
    values = layer._parameters.get("values")
    # FSDP2's parameters are DTensors; FSDP1 with use_orig_params marks its parameters.
    return type(values) is nn.Parameter and not hasattr(values, "_fsdp_flattened")


def watch_optimizers(values: Tensor) -> None:
    """Make ``step()`` raise an error in optimizers whose moments still have a former length."""
    # torch's fused optimizers do not check the length, and would write outside their memory.
    _hook_into_optimizers()
    _FORMER_NNZ.setdefault(values, set()).add(values.numel())


@cache
def _hook_into_optimizers() -> None:
    register_optimizer_step_pre_hook(_check_moments)


def _check_moments(optimizer: Optimizer, *_: Any) -> None:
    if is_dynamo_compiling():
        return
    for values, lengths in list(_FORMER_NNZ.items()):
        for name, held in optimizer.state.get(values, {}).items():
            wrong = isinstance(held, Tensor) and held.ndim == 1 and len(held) != values.numel()
            if wrong and len(held) in lengths:
                raise RuntimeError(
                    f"{name} of the optimizer has {len(held)} entries, but load_state_dict or "
                    f"set_pattern changed the layer's pattern, which now has {values.numel()} "
                    "active weights; build a new optimizer"
                )


def survivors(old: KernelCSR, new: KernelCSR) -> Tensor:
    """Return the ``source`` for ``move`` that keeps every weight that is active in both patterns.

    Example:
        >>> first, second = torch.tensor([1, 4]), torch.tensor([0, 4])
        >>> old, new = (KernelCSR.from_positions(at, (1, 1, 6)) for at in (first, second))
        >>> survivors(old, new)
        tensor([-1,  1])
    """
    old_at, new_at = old.positions(), new.positions()
    kept = torch.isin(new_at, old_at, assume_unique=True)
    return torch.searchsorted(old_at, new_at).where(kept, -1)


def move(tensors: Sequence[Tensor], source: Tensor) -> list[Tensor]:
    """Return the entries at the indices in ``source`` (see ``rewire``), and 0 for the index -1.

    Example:
        >>> move([torch.tensor([5.0, 6.0])], torch.tensor([-1, 0, -1]))
        [tensor([0., 5., 0.])]
    """
    old = source + 1  # indices after a 0 in front

    def moved(tensor: Tensor) -> Tensor:
        return torch.cat((tensor.new_zeros(1), tensor)).index_select(0, old.to(tensor.device))

    return [moved(tensor) for tensor in tensors]
