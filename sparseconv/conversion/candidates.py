"""Which layers of a model ``convert`` could replace, and what is in the way of the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from sparseconv.core.geometry import DTYPES
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.replacement import asks_for_gradients, check_module, held_outside
from sparseconv.profiling.result import LayerTimes


@dataclass
class Candidate:
    """An ``nn.Conv1d`` and what may take its place."""

    name: str
    path: str  # "" for the model itself
    conv: nn.Conv1d
    sparse: SparseConv1d | None  # None where there is an obstacle
    obstacle: str
    hooked: bool = False  # its weight's gradient has hooks, of hand-made masking for one
    chosen: bool = False
    reason: str = ""
    times: LayerTimes | None = None

    def wanted(self, selected: Collection[nn.Module] | None) -> bool:
        """Whether to measure this layer."""
        if self.sparse is None:
            return False
        return self.sparse.pattern.density < 1 if selected is None else self.conv in selected

    def record(self) -> LayerTimes:
        """What became of the layer."""
        pattern = None if self.sparse is None else self.sparse.pattern
        conv = self.conv
        unmeasured = LayerTimes(
            name=self.name,
            weight_shape=(conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size),
            nnz=None if pattern is None else pattern.nnz,
            density=None if pattern is None else pattern.density,
        )
        return replace(self.times or unmeasured, sparse=self.chosen, reason=self.reason)


def convolutions(model: nn.Module) -> dict[nn.Module, str]:
    check_module(model)
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if "_orig_mod" in module._modules:
            raise ValueError(
                f"convert takes a model before torch.compile, but {name or 'it'!r} is compiled; "
                "convert its _orig_mod and compile the result"
            )
    convs: dict[nn.Module, str] = {
        module: name for name, module in modules.items() if isinstance(module, nn.Conv1d)
    }
    if not convs:
        raise ValueError(f"{type(model).__name__} holds no nn.Conv1d, so there is none to convert")
    return convs


def _find(
    named: Mapping[str, nn.Module], convs: Mapping[nn.Module, str], name: str, what: str
) -> nn.Conv1d:
    if not isinstance(name, str):
        raise TypeError(f"{what} must hold names of layers, but got {name!r}")
    module = named.get(name)
    if module is None or module not in convs:
        raise ValueError(
            f"{what} must hold names of nn.Conv1d layers, of {sorted(convs.values())}, but got "
            f"{name!r}"
        )
    assert isinstance(module, nn.Conv1d)
    return module


def selected_layers(
    named: Mapping[str, nn.Module], convs: Mapping[nn.Module, str], layers: Iterable[str]
) -> set[nn.Module]:
    if isinstance(layers, str):
        raise TypeError(f"layers must be several names, but got the str {layers!r}; use a list")
    return {_find(named, convs, name, "layers") for name in layers}


def checked_masks(
    named: Mapping[str, nn.Module], convs: Mapping[nn.Module, str], masks: Mapping[str, Tensor]
) -> dict[nn.Module, Tensor]:
    found: dict[nn.Module, Tensor] = {}
    for name, mask in masks.items():
        layer = name.removesuffix("weight").removesuffix(".") if isinstance(name, str) else name
        conv = _find(named, convs, name if name in named else layer, "masks")
        if not isinstance(mask, Tensor):
            raise TypeError(f"the mask of {name!r} must be a tensor, but got {type(mask).__name__}")
        shape = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
        if mask.shape != shape:
            raise ValueError(
                f"the mask of {name!r} must have the weight's shape {shape}, but has "
                f"{tuple(mask.shape)}"
            )
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"the mask of {name!r} must hold bools, or zeros and ones only")
        found[conv] = mask != 0
    return found


def find_candidates(
    model: nn.Module,
    convs: Mapping[nn.Module, str],
    masks: Mapping[nn.Module, Tensor],
    selected: Collection[nn.Module],
) -> list[Candidate]:
    outside = dict(held_outside(model))
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for tensor in module._parameters.values():
            owners.setdefault(id(tensor), []).append(name)
    candidates = []
    for conv, name in convs.items():
        assert isinstance(conv, nn.Conv1d)
        pruning = _pruning(conv)
        obstacle = pruning if isinstance(pruning, str) else ""
        sparse, hooked = None, False
        if conv in outside:
            obstacle = f"it also stands in {outside[conv]}, where nothing can replace it"
        if not obstacle and not isinstance(pruning, str):
            parameter, mask = pruning
            own = (name, f"{name}.parametrizations.weight".removeprefix("."))
            others = [f"{owner!r}" for owner in owners[id(parameter)] if owner not in own]
            if others:
                obstacle = f"it shares its weight with {', '.join(others)}"
            else:
                mask = masks.get(conv, mask)
                hooked = bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)
                sparse = SparseConv1d.from_dense(conv, mask)
                sparse.values.requires_grad_(parameter.requires_grad)
                if sparse.bias is not None:
                    sparse.bias.requires_grad_(asks_for_gradients(conv, "bias"))
        if obstacle and (conv in selected or conv in masks):
            raise ValueError(f"layer {name!r} cannot be converted: {obstacle}")
        label = name or type(conv).__name__
        candidates.append(Candidate(label, name, conv, sparse, obstacle, hooked))
    return candidates


def _pruning(conv: nn.Conv1d) -> tuple[Tensor, Tensor | None] | str:
    """The parameter behind the weight and its mask (None: its zeros), or what is in the way."""
    kind = type_before_parametrizations(conv)
    if kind is not nn.Conv1d:
        return f"a {kind.__name__} may compute something else than nn.Conv1d"
    if "forward" in vars(conv):
        return "it has a forward of its own"
    if any(hasattr(conv, name) for name in ("values", "pattern")):
        return "it has an attribute 'values' or 'pattern' of its own, as SparseConv1d does"
    weight: Tensor | None = conv._parameters.get("weight")
    mask: Tensor | None = None
    computed: list[nn.Module] = []
    bias_is_own = "bias" in conv._parameters or "bias_orig" in conv._parameters
    if "parametrizations" in conv._modules:
        parametrizations: Any = conv.parametrizations
        computed = [p for found in parametrizations.values() for p in found]
        if set(parametrizations) == {"weight"} and all(map(_is_fake_sparsity, computed)):
            weight = parametrizations["weight"].original
            masks: list[Tensor] = [p.mask for p in computed]  # type: ignore[misc]
            mask = torch.stack([m != 0 for m in masks]).all(dim=0)
    elif "weight_mask" in conv._buffers:
        weight, mask = conv._parameters.get("weight_orig"), conv._buffers["weight_mask"]
    if weight is None or not bias_is_own:
        names = {type(p).__name__ for p in computed}
        names |= {type(hook).__name__ for hook in conv._forward_pre_hooks.values()}
        return (
            f"its {'weight' if weight is None else 'bias'} is computed by other means than pruning "
            f"({', '.join(sorted(names))}); make it a plain parameter first"
        )
    if weight.dtype not in DTYPES:
        return f"{weight.dtype} is not supported"
    if weight.is_meta:
        return "its weight holds no data, on the meta device"
    return weight, None if mask is None else mask != 0


def _is_fake_sparsity(parametrization: nn.Module) -> bool:
    """Whether this is a mask of torch.ao.pruning, which takes long to import."""
    kind = type(parametrization)
    return kind.__name__ == "FakeSparsity" and kind.__module__.startswith("torch.ao.pruning")
