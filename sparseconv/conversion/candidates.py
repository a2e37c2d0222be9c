"""Find the layers that ``convert`` could replace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparseconv.core.blocks import Block
from sparseconv.core.checks import checked_mask
from sparseconv.core.modules import bonds_of, check_not_wrapped
from sparseconv.measure.records import LayerTimes, Verdict
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.conv_transpose import SparseConvTranspose1d
from sparseconv.nn.sparse_layer import SparseLayer

Dense = nn.Conv1d | nn.ConvTranspose1d

MASKED = "its pruning mask is applied on every call; with training=False, it becomes permanent"


@dataclass(eq=False)
class Candidate:
    """Pair a dense convolution with its possible replacement."""

    path: str  # "" for the model itself
    conv: Dense
    named: bool = False  # listed in ``layers``
    given: Tensor | None = None  # its mask from ``masks``
    pruned: bool = False  # a hook or parametrization masks its weight on every call
    sparse: SparseLayer | None = None  # None where there is an obstacle
    verdict: Verdict = Verdict.OBSTACLE
    notes: tuple[str, ...] = ()  # the obstacle, or the block
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

    def refuse(self, obstacle: object) -> None:
        """Leave the layer dense; raise ValueError if the user named it."""
        if self.named or self.given is not None:
            raise ValueError(f"layer {self.path!r} cannot be converted: {obstacle}") from None
        self.sparse, self.verdict, self.notes = None, Verdict.OBSTACLE, (str(obstacle),)

    def record(self, limit: float, training: bool) -> LayerTimes:
        """Return the record of the layer's conversion."""
        sparse, nnz, density = self.verdict.converts, None, None
        if self.sparse is not None:
            nnz, density = self.sparse.pattern.nnz, self.sparse.pattern.density
        notes = list(self.notes) if sparse or self.sparse is None else []
        if self.verdict in (Verdict.FEW, Verdict.MANY):
            notes.append(f"the limit is {100 * limit:.3g} %")
        if self.given is not None and not (sparse or self.given.all()):
            notes.append("the weights outside its mask are set to 0")
        if self.pruned and not sparse:
            notes.append(MASKED if training else "its pruning mask was made permanent")
        found = self.times or LayerTimes(self.name, self.shape, nnz, density)
        return replace(found, sparse=sparse, verdict=self.verdict, notes=tuple(notes))


def find_candidates(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    layers: Iterable[str],
    block: Block,
) -> list[Candidate]:
    """Return each convolution once, with its sparse replacement or the reason why it has none.

    Arguments and errors are as in ``convert``; a layer may be given by any of its names.
    """
    check_not_wrapped(model, "convert")
    found: dict[nn.Module, Candidate] = {}
    by_name: dict[str, Candidate] = {}
    for name, conv in model.named_modules(remove_duplicate=False):
        if isinstance(conv, Dense):
            by_name[name] = found.setdefault(conv, Candidate(name, conv))
    if not found:
        raise ValueError(f"expected a model with an nn.Conv1d, but {type(model).__name__} has none")
    for name in layers:
        _find(by_name, name, "layers").named = True
    for name, mask in masks.items():
        layer = name if name in by_name else name.removesuffix("weight").removesuffix(".")
        candidate = _find(by_name, layer, "masks")
        candidate.given = checked_mask(f"the mask of {name!r}", mask)
        if candidate.given.shape != candidate.shape:
            raise ValueError(
                f"the mask of {name!r} must have the weight's shape {candidate.shape}, but has "
                f"{tuple(candidate.given.shape)}"
            )
    bond = bonds_of(model)
    for candidate in found.values():
        try:
            candidate.sparse = _sparse(candidate, bond, block)
        except TypeError as obstacle:  # also another dtype, or a subclass with other code
            candidate.refuse(obstacle)
    return list(found.values())


def _find(candidates: Mapping[str, Candidate], name: str, what: str) -> Candidate:
    if name not in candidates:
        raise ValueError(
            f"{what} must contain only names of nn.Conv1d layers, here {sorted(candidates)}, but "
            f"got {name!r}"
        )
    return candidates[name]


def _sparse(
    candidate: Candidate, bond: Callable[[nn.Module, Tensor], str | None], block: Block
) -> SparseLayer:
    """Return the replacement of a layer; raise TypeError if it has none."""
    conv = candidate.conv
    weight, mask = weight_and_mask(conv)
    if reason := bond(conv, weight):
        raise TypeError(f"it {reason}")
    if (shape := tuple(weight.shape)) != candidate.shape:  # cut by hand
        raise TypeError(f"its weight is {shape}, but its attributes state {candidate.shape}")
    candidate.pruned = mask is not None
    mask = weight != 0 if mask is None else mask
    mask = mask if candidate.given is None else candidate.given
    kind = SparseConvTranspose1d if conv.transposed else SparseConv1d
    try:
        sparse: SparseLayer = kind.from_dense(conv, mask, block=block)
        if block != (1, 1):
            candidate.notes += (f"in blocks of {block[0]} x {block[1]} channels",)
    except ValueError as error:  # the blocks do not fit
        sparse = kind.from_dense(conv, mask)
        candidate.notes += (f"with single weights: {error}",)
    return sparse


def weight_and_mask(conv: Dense) -> tuple[Tensor, Tensor | None]:
    """Return the weight's parameter and its pruning mask, if a hook or parametrization has one."""
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
    if weight is None or "bias" not in conv._parameters:
        names = {type(p).__name__ for p in [*computed, *conv._forward_pre_hooks.values()]}
        raise TypeError(
            f"its {'weight' if weight is None else 'bias'} is recomputed on every call "
            f"({', '.join(sorted(names))}); make it a plain parameter first"
        )
    if is_lazy(weight):
        raise TypeError("its weight is not initialised; first run the model once")
    if weight.is_meta:
        raise TypeError("its weight is on the meta device and has no data; load it first")
    return weight, mask


def _is_fake_sparsity(parametrization: nn.Module) -> bool:
    """Return whether this is a torch.ao.pruning mask, without the slow import of that package."""
    kind = type(parametrization)
    return kind.__name__ == "FakeSparsity" and kind.__module__.startswith("torch.ao.pruning")
