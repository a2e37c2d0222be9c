"""Check a model, its optimizer and its running averages for ``DSTScheduler``, on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparseconv.nn.optimizers import OptimizerState
from sparseconv.nn.patterned import check_movable
from sparseconv.nn.sparse_layer import SparseLayer

T = TypeVar("T")
Layers = Mapping[str, SparseLayer]
OTHER_AVERAGE = (
    "averages must be copies of the model with its current patterns, but one differs; after "
    "changing a pattern without this scheduler, start a new average"
)
NO_GRADIENT = (
    "grow='gradient' needs a forward and a backward pass through a SparseConv1d between calls "
    "{0} and {1} of step(), but there was none; call loss.backward() and optimizer.step() before "
    "each step(), with a single DSTScheduler for the layers. The replay of a CUDA graph "
    "(GraphedStep) does not count: if (step_count + 1) % update_every == 0, call the function "
    "itself instead of the replay"
)
_HINT = (
    "build the model and the scheduler from the same seed or state dict on every rank, keep the "
    "weights equal (as DistributedDataParallel does), or pass the process_group that trains this "
    "model"
)


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """Return the model's sparse layers by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}


def copies_of(
    layers: Layers, averages: nn.Module | Iterable[nn.Module]
) -> dict[str, list[SparseLayer]]:
    """Return each layer's copies in the averages, which may also contain the model itself."""
    own, found = list(layers.values()), []
    for average in [averages] if isinstance(averages, nn.Module) else averages:
        found.append([x for x in sparse_layers(average).values() if x not in own])
    try:
        return {name: copies for name, *copies in zip(layers, *found, strict=True)}
    except ValueError:
        raise ValueError(OTHER_AVERAGE) from None


def check_backward(
    layers: Iterable[SparseLayer], optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Reject a step without dense gradients, unless it merely left out all of these layers."""
    every = (p for group in optimizer.param_groups for p in group["params"])
    held = {id(p): p.grad for p in every if p.grad is not None}
    own = [held.get(id(layer._parameters.get("values"))) for layer in layers]
    if not held or any(grad is not None and grad.any() for grad in own):
        raise RuntimeError(NO_GRADIENT.format(step, step + 1))


def check_layers(
    layers: Layers,
    copies: Mapping[str, Sequence[SparseLayer]],
    optimizer: torch.optim.Optimizer,
    move: bool,
) -> OptimizerState:
    """Reject values that the optimizer does not have, and averages whose patterns differ.

    If ``move`` is true, also check that values and the optimizer's state can follow moved weights.
    Return the state.
    """
    state = OptimizerState(optimizer)
    held = set(map(id, state.trained))
    own = [x._parameters.get("values") for x in layers.values()]
    every = [id(values) for values in own if values is not None and values.requires_grad]
    if move and len(set(every)) < len(every):
        raise RuntimeError(
            "two layers have the same values, which cannot follow the patterns of both; use a "
            "single layer in both places, or create the second one with copy.deepcopy"
        )
    for name, layer in layers.items():
        values = layer._parameters.get("values")  # computed values are new at each access
        if values is not None and values.requires_grad and id(values) not in held:
            raise ValueError(
                "the optimizer must have the `values` of every SparseConv1d, but those of layer "
                f"{name!r} are missing; construct the optimizer with model.parameters(), or freeze "
                "the layer"
            )
        if any(copy.pattern != layer.pattern for copy in copies[name]):
            raise ValueError(OTHER_AVERAGE)
    if move:
        state.check({f"{name}.values": layer.values for name, layer in layers.items()})
        for name, layer in layers.items():
            for each in (layer, *copies[name]) if layer.values.requires_grad else ():
                check_movable(each)
    return state


class Ranks:
    """Represent a process group, or this process alone if ``torch.distributed`` is not initialised.

    ``"default"`` means torch's default group, and None means this process alone.
    """

    def __init__(self, group: Any) -> None:
        self.trains_alone = group is None
        self.group = None if group == "default" else group  # torch's None is the default group

    @property
    def alone(self) -> bool:
        """Return whether this process is the only one."""
        distributed = dist.is_available() and dist.is_initialized()
        return self.trains_alone or not distributed or dist.get_world_size(self.group) == 1

    def gather(self, item: Any) -> list[Any]:
        """Return every rank's ``item`` in rank order; every rank must call this method."""
        items = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(items, item, group=self.group)
        return items

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks in place; the result is bit-identical on all of them."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def agree(self, compute: Callable[[], T], fingerprint: Callable[[T], Any]) -> T:
        """Return ``compute()`` if it succeeds on all ranks, with the same ``fingerprint``.

        Otherwise, raise an error on all ranks: the error of ``compute`` where it failed, and
        RuntimeError elsewhere.
        """
        if self.alone:
            return compute()
        failure: Exception | None = None
        found = own = None
        try:
            found = compute()
            own = fingerprint(found)
        except Exception as error:  # the other ranks must learn of it first
            failure = error
        report = None if failure is None else f"{type(failure).__name__}: {failure}"
        reports = self.gather((report, own))
        if failure is not None:
            raise failure
        for rank, (its_failure, other) in enumerate(reports):
            if its_failure is not None:
                raise RuntimeError(f"rank {rank} failed, so all ranks stop: {its_failure}")
            if other != own:
                raise RuntimeError(
                    f"all ranks must agree, but rank {rank} has {other} and this rank "
                    f"({dist.get_rank(self.group)}) has {own}; {_HINT}"
                )
        return found  # type: ignore[return-value]
