"""What a ``SparseConv1d`` accepts in a state dict: its own format and two dense ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparseconv.pattern import KernelCSR


def entry_names(has_bias: bool) -> list[str]:
    """Name the entries of the layer's own format."""
    return ["values", "crow_indices", "col_indices"] + ["bias"] * has_bias


def read_layer(
    found: dict[str, Any], shape: tuple[int, int, int], has_bias: bool
) -> tuple[KernelCSR, dict[str, Tensor]]:
    """Check the whole entry of one layer and return it in the layer's own format.

    Args:
        found: everything in the state dict under the layer's prefix, without the prefix.
        shape: of the layer's dense weight.
        has_bias: whether the layer has one.

    Raises:
        TypeError, ValueError: the entry is not exactly one of the formats, or does not fit.
    """
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, but got {type(tensor).__name__}")
    entries = dict(found) if "values" in found else _from_dense(dict(found), shape)
    expected = entry_names(has_bias)
    if missing := sorted(set(expected) - set(entries)):
        raise ValueError(f"missing {missing}; a layer is loaded whole or not at all")
    if unexpected := sorted(set(entries) - set(expected)):
        raise ValueError(
            f"unexpected {unexpected}: remove them, or build the layer so that it has them; "
            "a layer is loaded whole or not at all"
        )
    pattern = KernelCSR(entries["crow_indices"].cpu(), entries["col_indices"].cpu(), shape)
    for name, size in (("values", pattern.nnz), ("bias", shape[0])):
        if name in entries and entries[name].shape != (size,):
            raise ValueError(
                f"size mismatch for {name}: expected shape ({size},), "
                f"but got {tuple(entries[name].shape)}"
            )
        if name in entries and not entries[name].is_floating_point():
            raise TypeError(f"{name} must be floating point, but got {entries[name].dtype}")
    return pattern, entries


def _from_dense(entries: dict[str, Tensor], shape: tuple[int, int, int]) -> dict[str, Tensor]:
    name = "weight_orig" if "weight_orig" in entries else "weight"
    needed = {"weight_orig", "weight_mask"} if name == "weight_orig" else {"weight"}
    if not needed <= set(entries):
        raise ValueError(
            "expected values, crow_indices and col_indices, or a dense weight, or weight_orig and "
            f"weight_mask, but got only {sorted(entries)}"
        )
    weight = entries.pop(name).detach()
    mask = entries.pop("weight_mask", None)
    for label, tensor in ((name, weight), ("weight_mask", mask)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"size mismatch for {label}: expected shape {shape}, but got {tuple(tensor.shape)}"
            )
    if mask is not None and not ((mask == 0) | (mask == 1)).all():
        raise ValueError("weight_mask must hold zeros and ones only")
    active = (weight if mask is None else mask) != 0
    pattern = KernelCSR.from_mask(active)
    return {
        "values": weight[active.to(weight.device)],
        "crow_indices": pattern.crow_indices.clone(),
        "col_indices": pattern.col_indices.clone(),
        **entries,
    }
