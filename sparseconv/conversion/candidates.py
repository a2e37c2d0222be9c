"""Find the layers that ``convert`` could replace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from sparseconv.core.blocks import Block, as_block
from sparseconv.core.checks import checked_mask
from sparseconv.core.geometry import DTYPES
from sparseconv.functional.chain import UNSHARED, kernels_for
from sparseconv.measure.records import LayerTimes, Verdict
from sparseconv.nn.modules import (
    check_module,
    check_not_wrapped,
    held_outside,
    hooks_of,
    owners_of,
)
from sparseconv.nn.padded_conv import REMEDY
from sparseconv.nn.sparse_layer import SparseLayer
from sparseconv.profiling.stopwatch import plain_kind

Dense = nn.Conv1d | nn.ConvTranspose1d
PLAIN = (nn.Conv1d, nn.ConvTranspose1d)


class ObstacleError(Exception):
    """Report why a layer cannot be replaced."""


@dataclass(eq=False)
class Candidate:
    """Pair a dense layer with its possible replacement."""

    path: str  # "" for the model itself
    conv: Dense
    named: bool = False  # listed in ``layers``
    given: Tensor | None = None  # its mask from ``masks``
    sparse: SparseLayer | None = None  # None where there is an obstacle
    verdict: Verdict = Verdict.OBSTACLE
    notes: tuple[str, ...] = ()  # the obstacle, or what a sparse layer loses
    times: LayerTimes | None = None

    @property
    def name(self) -> str:
        return self.path or type(self.conv).__name__

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the weight, ``(C_out, C_in // groups, K)`` unless transposed."""
        conv = self.conv
        sides = conv.out_channels, conv.in_channels
        rows, columns = reversed(sides) if conv.transposed else sides
        return rows, columns // conv.groups, *conv.kernel_size

    @property
    def lacks_blocks(self) -> bool:
        """Return whether kernels for blocks would compute the layer if its mask had blocks."""
        sparse = self.sparse
        if not self.verdict.converts or sparse is None or sparse.values.device.type != "cpu":
            return False
        return kernels_for(sparse.pattern, sparse._geometry(), torch.bfloat16)[1] == UNSHARED

    def record(self, limit: float) -> LayerTimes:
        """Return the record of the layer's conversion."""
        sparse, nnz, density = self.verdict.converts, None, None
        if self.sparse is not None:
            nnz, density = self.sparse.pattern.nnz, self.sparse.pattern.density
        notes = list(self.notes) if sparse or self.sparse is None else []
        if self.verdict in (Verdict.FEW, Verdict.MANY):
            notes.append(f"the limit is {100 * limit:.3g} %")
        if self.given is not None and not (sparse or self.given.all()):
            notes.append("the weights outside its mask are set to 0")
        found = self.times or LayerTimes(self.name, self.shape, nnz, density)
        return replace(found, sparse=sparse, verdict=self.verdict, notes=tuple(notes))


def find_candidates(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    layers: Iterable[str],
    block: int | tuple[int, int] = 1,
) -> list[Candidate]:
    """Return each convolution once, with its sparse replacement or the reason why it has none.

    Arguments and errors are as in ``convert``; a layer may be given by any of its names.
    """
    check_module(model)
    check_not_wrapped(model, "convert")
    found: dict[nn.Module, Candidate] = {}
    by_name: dict[str, Candidate] = {}
    for name, conv in model.named_modules(remove_duplicate=False):
        if isinstance(conv, Dense):
            by_name[name] = found.setdefault(conv, Candidate(name, conv))
    if not found:
        raise ValueError(f"expected a model with an nn.Conv1d, but {type(model).__name__} has none")
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of names, but got {layers!r}")
    for name in layers:
        _find(by_name, name, "layers").named = True
    if not isinstance(masks, Mapping):
        raise TypeError(
            "masks must be a dict that maps layer names to masks, such as {'0': mask}, but got a "
            f"{type(masks).__name__}"
        )
    for name, mask in masks.items():
        layer = name if name in by_name else name.removesuffix("weight").removesuffix(".")
        candidate = _find(by_name, layer, "masks")
        candidate.given = checked_mask(f"the mask of {name!r}", mask)
        if candidate.given.shape != candidate.shape:
            raise ValueError(
                f"the mask of {name!r} must have the weight's shape {candidate.shape}, but has "
                f"{tuple(candidate.given.shape)}"
            )
    outside, owners, block = dict(held_outside(model)), owners_of(model), as_block(block)
    for candidate in found.values():
        try:
            candidate.sparse = _sparse(candidate, outside, owners, block)
        except ObstacleError as obstacle:
            if candidate.named or candidate.given is not None:
                name = candidate.path
                raise ValueError(f"layer {name!r} cannot be converted: {obstacle}") from None
            candidate.notes = (str(obstacle),)
    return list(found.values())


def _find(candidates: Mapping[str, Candidate], name: str, what: str) -> Candidate:
    if name not in candidates:
        raise ValueError(
            f"{what} must contain only names of nn.Conv1d layers, here {sorted(candidates)}, but "
            f"got {name!r}"
        )
    return candidates[name]


def _sparse(
    candidate: Candidate,
    outside: Mapping[nn.Module, str],
    owners: Mapping[int, list[str]],
    block: Block,
) -> SparseLayer:
    conv, path = candidate.conv, candidate.path
    weight, mask = weight_and_mask(conv, candidate.given)
    if conv in outside:
        raise ObstacleError(
            f"it is also referenced by {outside[conv]}, where it cannot be replaced; keep it only "
            "as a submodule"
        )
    own = (path, f"{path}.parametrizations.weight".removeprefix("."))
    if others := [f"{owner!r}" for owner in owners[id(weight)] if owner not in own]:
        raise ObstacleError(
            f"it shares its weight with {', '.join(others)}; create a separate weight for each "
            "layer, or call the same layer in both places"
        )
    if weight._backward_hooks or weight._post_accumulate_grad_hooks:  # masking by hand uses these
        candidate.notes = ("the hooks on its weight's gradient are lost",)
    mask = mask if candidate.given is None else candidate.given
    try:
        sparse: SparseLayer = plain_kind(conv).from_dense(conv, mask)
    except TypeError as error:  # a subclass with other code
        raise ObstacleError(str(error)) from None
    if block != (1, 1):
        try:
            sparse = plain_kind(conv).from_dense(conv, mask, block=block)
            candidate.notes += (f"in blocks of {block[0]} x {block[1]} channels",)
        except ValueError as error:
            candidate.notes += (f"with single weights: {error}",)
    if (kind := type_before_parametrizations(conv)) not in PLAIN:
        candidate.notes += (f"attributes and methods of its class {kind.__name__} are lost",)
    return sparse


def weight_and_mask(conv: Dense, given: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the weight's parameter and the pruning mask; without a mask, zeros are inactive.

    Raises:
        ObstacleError: the layer cannot be replaced; the message contains the reason.
    """
    weight: Tensor | None = conv._parameters.get("weight")
    mask: Tensor | None = None
    computed: list[nn.Module] = []
    if "parametrizations" in conv._modules:
        parametrizations: Any = conv.parametrizations
        computed = [p for found in parametrizations.values() for p in found]
        if set(parametrizations) == {"weight"} and all(map(_is_fake_sparsity, computed)):
            weight = parametrizations["weight"].original
            masks: list[Tensor] = [p.mask for p in computed]  # type: ignore[misc]
            mask = torch.stack([m != 0 for m in masks]).all(dim=0)
    elif "weight_orig" in conv._parameters and "weight_mask" in conv._buffers:
        weight, mask = conv._parameters["weight_orig"], conv.get_buffer("weight_mask").bool()
    elif hasattr(conv, "weight_mask") and given is None:
        raise ObstacleError(
            "it has a weight_mask without weight_orig, so the model might not apply the mask; pass "
            "the mask in masks, or delete it"
        )
    if weight is None or "bias" not in conv._parameters:
        names = {type(p).__name__ for p in [*computed, *conv._forward_pre_hooks.values()]}
        raise ObstacleError(
            f"its {'weight' if weight is None else 'bias'} is recomputed on every call "
            f"({', '.join(sorted(names))}); make it a plain parameter first"
        )
    if is_lazy(weight):
        raise ObstacleError("its weight is not initialised; first run the model once")
    if added := _added(conv):
        own = type_before_parametrizations(conv) not in PLAIN and added != ["hooks"]
        remedy = REMEDY if own else "convert first, then add them again"
        raise ObstacleError(f"it has {', '.join(added)}, which would be lost; {remedy}")
    if weight.dtype not in DTYPES:
        raise ObstacleError(
            f"{weight.dtype} is not supported; convert the layer to one of {DTYPES}"
        )
    if weight.is_meta:
        raise ObstacleError("its weight is on the meta device and has no data; load it first")
    return weight, mask


def _added(conv: Dense) -> list[str]:
    """Return what a sparse layer would lose: added state, hooks and attributes."""
    names = [name.split(".")[0] for name in conv.state_dict()]
    if type_before_parametrizations(conv) in PLAIN:
        names += [*vars(conv), *conv._buffers, *conv._modules]
    expected = {*vars(nn.Conv1d(1, 1, 1, device="meta")), "weight", "bias", "parametrizations"}
    expected |= {"weight_orig", "weight_mask"}
    found = [f"an attribute {name!r}" for name in dict.fromkeys(names) if name not in expected]
    return [*(["hooks"] if hooks_of(conv) else []), *found]


def _is_fake_sparsity(parametrization: nn.Module) -> bool:
    """Return whether this is a torch.ao.pruning mask, without the slow import of that package."""
    kind = type(parametrization)
    return kind.__name__ == "FakeSparsity" and kind.__module__.startswith("torch.ao.pruning")
