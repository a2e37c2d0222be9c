"""Read the values and state dicts that a ``SparseConv1d`` accepts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX

from sparseconv.core.checks import check_dense, checked_mask
from sparseconv.core.geometry import DTYPES
from sparseconv.core.pattern import KernelCSR
from sparseconv.nn.pattern_buffers import INDICES


def check_floats(name: str, tensor: Tensor, size: int) -> None:
    """Reject a tensor that cannot be copied into a parameter ``(size,)``."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, but got {type(tensor).__name__}")
    check_dense(name, tensor)
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must have one of the dtypes {DTYPES}, but got {tensor.dtype}")
    if tensor.shape != (size,):
        raise ValueError(
            f"size mismatch for {name}: expected shape ({size},), but got {tuple(tensor.shape)}"
        )


NAMES = ("values", *INDICES, "bias")  # the layer's own format
_FORMATS = (
    {"values", *INDICES},
    {"weight"},
    {"weight", "weight_mask"},
    {"weight_orig", "weight_mask"},
)


def own_entries(layer: nn.Module, state_dict: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the entries under the layer's prefix, without the prefix.

    Omit entries added by a subclass, pruning or a parametrization, which ``nn.Module`` loads.
    """
    added = {*layer._parameters, *layer._buffers, *layer._modules, _EXTRA_STATE_KEY_SUFFIX}
    added -= set(NAMES)
    entries = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    return {name: v for name, v in entries.items() if name.split(".")[0] not in added}


def read_layer(
    layer: Any,
    found: dict[str, Any],
    present: KernelCSR,
    has_bias: bool,
    holds_values: bool,
    metadata: dict[str, Any],
) -> tuple[KernelCSR, dict[str, Tensor]]:
    """Check the ``own_entries`` of a layer; return its pattern, and its values and bias by name."""
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, but got {type(tensor).__name__}")
        check_dense(name, tensor)
    shape, rest = present.shape, {name: t for name, t in found.items() if name not in INDICES}
    if not holds_values:
        _check_same_pattern(found, present)
        return present, rest
    if found.keys() - {"bias"} not in _FORMATS or ("bias" in found) != has_bias:
        raise ValueError(
            "expected values, crow_indices and col_indices, or a dense weight, or weight_orig "
            f"and weight_mask, {'with' if has_bias else 'without'} a bias, but got "
            f"{sorted(found)}; a layer is loaded completely or not at all"
        )
    if "values" in found:
        if metadata.get("shape", shape) != shape:
            raise ValueError(
                "size mismatch: expected the state of a layer of shape (out_channels, "
                f"in_channels // groups, kernel_size) = {shape}, but got the state of a layer of "
                f"shape {metadata['shape']}; if renamed entries do have this shape, load "
                "dict(state_dict), which skips this check"
            )
        crow, col = (found[name] for name in INDICES)
        pattern = KernelCSR(crow, col, shape, present.block)
    else:
        weight = rest.pop("weight" if "weight" in found else "weight_orig").detach()
        mask = checked_mask("weight_mask", rest.pop("weight_mask", weight != 0))
        for what, tensor in (("weight", weight), ("weight_mask", mask)):
            if tensor.shape != shape:
                raise ValueError(
                    f"size mismatch for {what}: expected shape {shape}, but got "
                    f"{tuple(tensor.shape)}"
                )
        pattern = KernelCSR.from_mask(mask, present.block)
        rest["values"] = weight[mask.to(weight.device)]
    for name, size in (("values", pattern.nnz), ("bias", layer.out_channels)):
        if name in rest:
            check_floats(name, rest[name], size)
    return pattern, rest


def _check_same_pattern(found: dict[str, Any], pattern: KernelCSR) -> None:
    """Reject a different pattern if the values are computed from other tensors or sharded."""
    for name in INDICES:
        indices, present = found.get(name), getattr(pattern, name)
        if not isinstance(indices, Tensor) or not indices.cpu().equal(present):
            raise ValueError(
                f"{name} must match the layer's current pattern, because its values are computed "
                "from other tensors or sharded; load before sharding, or first call "
                "torch.nn.utils.prune.remove(layer, 'values')"
            )
