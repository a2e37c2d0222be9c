"""Make all processes that train a model agree on each update, or raise an error in all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_HINT = (
    "build the model and the scheduler from the same seed or state dict on every rank, keep the "
    "weights equal (as DistributedDataParallel does), or pass the process_group that trains this "
    "model"
)


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
