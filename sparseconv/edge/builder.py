"""The steps so far, and where in their tensors PyTorch's numbers lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparseconv.edge.layers import AnyStep, Array, Layer


class Value(NamedTuple):
    """A tensor of the traced model in the C program's memory.

    Attributes:
        of: number of the tensor there.
        places: int64 ``(1, ...)`` in PyTorch's shape: where in the tensor each number lies.
    """

    of: int
    places: Tensor


class Call(NamedTuple):
    """A call of an operation.

    Attributes:
        name: of the operation.
        values: of its arguments those that depend on the series.
        args: all arguments by name.
        again: the call with another tensor in the place of the first value.
    """

    name: str
    values: list[Value]
    args: dict[str, Any]
    again: Callable[[Tensor], Any]


@dataclass
class Builder:
    """The steps so far."""

    shapes: list[tuple[int, int]]  # length and channels of each tensor
    steps: list[AnyStep] = field(default_factory=list)
    ending: str = ""

    def add(
        self, make: Callable[..., AnyStep], x: Value, rows: int, positions: int, **options: Any
    ) -> int:
        """Add a step that computes a new tensor, and return the tensor's number."""
        length, channels = self.shapes[x.of]
        given: dict[str, Any] = {
            "inputs": (x.of,), "output": len(self.shapes), "stride": rows, "positions": positions,
            "length": length, "channels": channels,
        } | options  # fmt: skip
        if given["output"] == len(self.shapes):
            whole = options.get("rows_whole", False)
            self.shapes.append((rows, positions) if whole else (positions, rows))
        step = make(**given)
        for part in ("weight", "bias") if isinstance(step, Layer) else ():
            if not np.isfinite(getattr(step, part).astype(np.float32)).all():
                raise ValueError(
                    f"expected a finite {part}, but float32 has infinity or NaN; train it anew"
                )
        self.steps.append(step)
        return step.output

    def fills(self, x: Value) -> bool:
        """Tell whether the value is all that its tensor holds, in whatever order."""
        size = math.prod(self.shapes[x.of])
        return size == x.places.numel() == len(set(x.places.ravel().tolist()))

    def in_order(self, x: Value) -> Value:
        """Return the value, by a copy if need be, as all that its tensor holds, time by time."""
        same = self.fills(x) and torch.equal(x.places, ordered(x.places.shape))
        return x if same else self.copy(x)

    def copy(self, x: Value, **options: Any) -> Value:
        """Copy a value, time by time, into a new tensor, or to where the options say."""
        if x.places.dim() not in (2, 3):
            raise NotImplementedError(f"it gets {x.places.dim()} dimensions")
        at: Array = x.places.reshape(x.places.shape[1], -1).numpy()
        shape, pads = list(x.places.shape), options.get("padding", (0, 0))
        if (step := even(at, self.shapes[x.of][1])) is None:  # the rows are times
            at = at.T
            options = {"over_time": True, "rows_whole": True, "stride": shape[1]} | options
            if (step := even(at, 1)) is None:
                raise NotImplementedError("it reads samples in an order that no layer has")
        offsets, which = np.unique(at[:, 0], return_inverse=True)
        active = np.eye(len(offsets), dtype=bool)[which]
        made = self.add(Layer, x, len(at), at.shape[1] + sum(pads), **{
            "kind": "copy", "weight": active * 1.0, "active": active, "offsets": offsets,
            "bias": np.zeros(len(at)), "step": step,
        } | options)  # fmt: skip
        shape[-1] += sum(pads)
        return Value(made, ordered(shape))


def ordered(shape: Sequence[int]) -> Tensor:
    """Return the places of ``(1, channels, length)`` or ``(1, features)``, time by time."""
    places = torch.arange(math.prod(shape))
    return places.view(shape[2], shape[1]).T[None] if len(shape) == 3 else places.view(*shape)


def even(at: Array, alone: int) -> int | None:
    """Return the distance of neighbours in every row, ``alone`` if there are none; None: many."""
    if at.shape[1] == 1:
        return alone
    step = int(at[0, 1] - at[0, 0])
    return step if step >= 0 and (np.diff(at, axis=1) == step).all() else None
