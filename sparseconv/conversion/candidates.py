"""Find the layers that ``convert`` could replace, and why it cannot replace others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from sparseconv.core.geometry import DTYPES
from sparseconv.measure.records import LayerTimes, Verdict
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.modules import (
    check_module,
    check_not_compiled,
    held_outside,
    hooks_of,
    owners_of,
)


class ObstacleError(Exception):
    """Why a layer cannot be replaced."""


@dataclass
class Candidate:
    """An ``nn.Conv1d`` and what may take its place."""

    path: str  # "" for the model itself
    conv: nn.Conv1d
    given: Tensor | None = None  # its mask among those that convert was given
    sparse: SparseConv1d | None = None  # None where there is an obstacle
    hooked: bool = False  # its weight's gradient has hooks, for example of hand-made masking
    verdict: Verdict = Verdict.OBSTACLE
    notes: tuple[str, ...] = ()
    times: LayerTimes | None = None

    @property
    def name(self) -> str:
        return self.path or type(self.conv).__name__

    def wanted(self, selected: Collection[nn.Module] | None, unpruned: bool) -> bool:
        """Return whether to measure this layer."""
        if self.sparse is None:
            return False
        if selected is None:
            return unpruned or self.sparse.pattern.density < 1
        return self.conv in selected

    def record(self) -> LayerTimes:
        """Make the record of what became of the layer."""
        pattern = None if self.sparse is None else self.sparse.pattern
        unmeasured = LayerTimes(
            name=self.name,
            weight_shape=weight_shape(self.conv),
            nnz=None if pattern is None else pattern.nnz,
            density=None if pattern is None else pattern.density,
        )
        return replace(
            self.times or unmeasured,
            sparse=self.verdict.converts,
            verdict=self.verdict,
            notes=self.notes,
        )


def weight_shape(conv: nn.Conv1d) -> tuple[int, ...]:
    return conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size


def convolutions(model: nn.Module) -> dict[str, nn.Conv1d]:
    """Return every ``nn.Conv1d`` by its name; a shared one by each of its names."""
    check_module(model)
    check_not_compiled(model, "convert")
    every = model.named_modules(remove_duplicate=False)
    convs = {name: module for name, module in every if isinstance(module, nn.Conv1d)}
    if not convs:
        raise ValueError(f"{type(model).__name__} holds no nn.Conv1d, so there is none to convert")
    return convs


def _find(convs: Mapping[str, nn.Conv1d], name: str, what: str) -> nn.Conv1d:
    if name not in convs:
        raise ValueError(
            f"{what} must hold names of nn.Conv1d layers, of {sorted(convs)}, but got {name!r}"
        )
    return convs[name]


def selected_layers(convs: Mapping[str, nn.Conv1d], layers: Iterable[str]) -> set[nn.Module]:
    if isinstance(layers, str):
        raise TypeError(f"layers must be several names, but got the str {layers!r}; use a list")
    return {_find(convs, name, "layers") for name in layers}


def checked_masks(
    convs: Mapping[str, nn.Conv1d], masks: Mapping[str, Tensor]
) -> dict[nn.Module, Tensor]:
    found: dict[nn.Module, Tensor] = {}
    for name, mask in masks.items():
        layer = name if name in convs else name.removesuffix("weight").removesuffix(".")
        conv = _find(convs, layer, "masks")
        mask = torch.as_tensor(mask)
        if mask.shape != weight_shape(conv):
            raise ValueError(
                f"the mask of {name!r} must have the weight's shape {weight_shape(conv)}, but has "
                f"{tuple(mask.shape)}"
            )
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"the mask of {name!r} must hold bools, or zeros and ones only")
        found[conv] = mask != 0
    return found


def find_candidates(
    model: nn.Module, masks: Mapping[nn.Module, Tensor], selected: Collection[nn.Module]
) -> list[Candidate]:
    """Return every ``nn.Conv1d`` once, with its sparse layer or the reason why it has none."""
    outside = dict(held_outside(model))
    owners = owners_of(model)
    candidates = []
    for name, conv in model.named_modules():
        if not isinstance(conv, nn.Conv1d):
            continue
        candidate = Candidate(name, conv, masks.get(conv))
        candidates.append(candidate)
        try:
            if any(p is not None and is_lazy(p) for p in conv._parameters.values()):
                raise ObstacleError("it was never run, so its weight has no shape yet")
            if conv in outside:
                raise ObstacleError(f"{outside[conv]} holds it too, where nothing can replace it")
            weight, mask = _pruning(conv, candidate.given)
            own = (name, f"{name}.parametrizations.weight".removeprefix("."))
            others = [f"{owner!r}" for owner in owners[id(weight)] if owner not in own]
            if others:
                raise ObstacleError(f"it shares its weight with {', '.join(others)}")
        except ObstacleError as obstacle:
            candidate.notes = (str(obstacle),)
            if conv in selected or conv in masks:
                raise ValueError(f"layer {name!r} cannot be converted: {obstacle}") from None
            continue
        candidate.hooked = bool(weight._backward_hooks or weight._post_accumulate_grad_hooks)
        candidate.sparse = SparseConv1d.from_dense(conv, masks.get(conv, mask))
    return candidates


def set_inactive_to_zero(conv: nn.Conv1d, mask: Tensor) -> None:
    """Set the weights outside of a mask to 0, of a layer that could be replaced."""
    weight, _ = _pruning(conv, mask)
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        weight.masked_fill_(~mask.to(weight.device), 0)


def _pruning(conv: nn.Conv1d, given: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the parameter of the weight, and its mask (None: its zeros) where none is given."""
    kind = type_before_parametrizations(conv)
    if kind is not nn.Conv1d:
        raise ObstacleError(f"a {kind.__name__} may compute something else than nn.Conv1d")
    weight: Tensor | None = conv._parameters.get("weight")
    mask: Tensor | None = None
    computed: list[nn.Module] = []
    bias_is_own = "bias" in conv._parameters
    if "parametrizations" in conv._modules:
        parametrizations: Any = conv.parametrizations
        computed = [p for found in parametrizations.values() for p in found]
        if set(parametrizations) == {"weight"} and all(map(_is_fake_sparsity, computed)):
            weight = parametrizations["weight"].original
            masks: list[Tensor] = [p.mask for p in computed]  # type: ignore[misc]
            mask = torch.stack([m != 0 for m in masks]).all(dim=0)
    elif (
        "weight_orig" in conv._parameters and (kept := conv._buffers.get("weight_mask")) is not None
    ):
        weight, mask = conv._parameters["weight_orig"], kept.bool()
    elif hasattr(conv, "weight_mask") and given is None:
        raise ObstacleError(
            "it has a weight_mask, but no weight_orig: whether the model applies it cannot be "
            "seen; pass it in masks, or delete it"
        )
    if weight is None or not bias_is_own:
        names = {type(p).__name__ for p in computed}
        names |= {type(hook).__name__ for hook in conv._forward_pre_hooks.values()}
        raise ObstacleError(
            f"its {'weight' if weight is None else 'bias'} is computed ({', '.join(sorted(names))})"
            "; make it a plain parameter first"
        )
    if added := _added(conv):
        raise ObstacleError(f"it has {', '.join(added)}, which would be lost")
    if weight.dtype not in DTYPES:
        raise ObstacleError(f"{weight.dtype} is not supported")
    if weight.is_meta:
        raise ObstacleError("its weight holds no data, on the meta device")
    return weight, mask


def _added(conv: nn.Conv1d) -> list[str]:
    """Return what the layer holds that neither ``nn.Conv1d`` nor pruning has put there."""
    expected = {*_held(nn.Conv1d(1, 1, 1, device="meta"))}  # there nothing is drawn
    expected |= {"weight", "weight_orig", "weight_mask", "parametrizations"}
    found = [f"an attribute {name!r}" for name in _held(conv) if name not in expected]
    return [*(["hooks"] if hooks_of(conv) else []), *found]


def _held(module: nn.Module) -> list[str]:
    """Return the names of all attributes, parameters, buffers and modules of one module."""
    return [*vars(module), *module._parameters, *module._buffers, *module._modules]


def _is_fake_sparsity(parametrization: nn.Module) -> bool:
    """Return whether this is a mask of torch.ao.pruning, which takes long to import."""
    kind = type(parametrization)
    return kind.__name__ == "FakeSparsity" and kind.__module__.startswith("torch.ao.pruning")
