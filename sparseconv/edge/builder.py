"""Build the steps of a C program; track where its tensors store PyTorch's values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparseconv.edge.layers import AnyStep, Array, Layer


class Value(NamedTuple):
    """A tensor of the traced model, in the C program's memory.

    Attributes:
        of: number of the C program's tensor.
        places: the position of each value in that tensor, int64 in PyTorch's shape ``(1, ...)``.
    """

    of: int
    places: Tensor


class Call(NamedTuple):
    """One call of an operation.

    Attributes:
        name: name of the operation.
        values: the arguments computed from the series.
        args: all arguments by name.
        again: repeats the call with a different first value.
    """

    name: str
    values: list[Value]
    args: dict[str, Any]
    again: Callable[[Tensor], Any]

    def bias(self, rows: int) -> Array:
        bias = self.args.get("bias")
        return np.zeros(rows) if bias is None else to_numpy(bias)


@dataclass
class Builder:
    """Collects the steps of the program.

    Attributes:
        shapes: length and channels of each tensor.
        shared: tensors that several operations read; steps that write them must not be extended.
        pads: what each padded copy contains, and its padding, by tensor number.
    """

    shapes: list[tuple[int, int]]
    steps: list[AnyStep] = field(default_factory=list)
    ending: str = ""
    shared: set[int] = field(default_factory=set)
    pads: dict[int, tuple[Value, dict[str, Any]]] = field(default_factory=dict)

    def add(
        self, make: Callable[..., AnyStep], x: Value, rows: int, positions: int, **options: Any
    ) -> int:
        """Add a step for a new tensor, and return the tensor's number."""
        length, channels = self.shapes[x.of]
        given: dict[str, Any] = {
            "inputs": (x.of,), "output": len(self.shapes), "stride": rows, "positions": positions,
            "length": length, "channels": channels,
        } | options  # fmt: skip
        if given["output"] == len(self.shapes):
            whole = options.get("rows_whole", False)
            self.shapes.append((rows, positions) if whole else (positions, rows))
        return self.append(make(**given))

    def append(self, step: AnyStep) -> int:
        """Add a step, and return the number of its output."""
        for part in ("weight", "bias") if isinstance(step, Layer) else ():
            if not np.isfinite(getattr(step, part).astype(np.float32)).all():
                raise ValueError(
                    f"expected a finite {part}, but in float32 it contains infinity or NaN; train "
                    "the model again"
                )
        self.steps.append(step)
        return step.output

    def fills(self, x: Value) -> bool:
        """Return whether the value covers its whole tensor, in any order."""
        size = math.prod(self.shapes[x.of])
        return size == x.places.numel() == len(set(x.places.ravel().tolist()))

    def writers(self, x: Value) -> list[AnyStep]:
        """Return the steps that write the tensor; none if several operations read it."""
        return [] if x.of in self.shared else [s for s in self.steps if s.output == x.of]

    def writer(self, x: Value) -> Any:
        """Return the only layer that writes the tensor, if that layer may be extended."""
        found = self.writers(x)
        return found[0] if len(found) == 1 and isinstance(found[0], Layer) else None

    def change(self, step: AnyStep, /, **changes: Any) -> None:
        self.steps[self.steps.index(step)] = replace(step, **changes)

    def filled(self, x: Value) -> Value:
        """Return the value as a whole tensor, made by a copy or by a shorter layer."""
        if self.fills(x):
            return x
        layer, channels = self.writer(x), self.shapes[x.of][1]
        positions, rest = divmod(x.places.numel(), channels)
        first = torch.equal(x.places.ravel().sort()[0], torch.arange(x.places.numel()))
        if layer is None or layer.over_time or layer.stride != channels or rest or not first:
            return self.copy(x)
        last = (positions - 1) * layer.step + int(layer.offsets[-1])
        right = max(0, last // layer.channels + 1 - layer.length - layer.padding[0])
        self.change(layer, positions=positions, padding=(layer.padding[0], right))
        self.shapes[x.of] = positions, channels
        return x

    def is_in_order(self, x: Value) -> bool:
        """Return whether the value covers its whole tensor in time-major order."""
        same = (*x.places.shape, 1)[2:0:-1] == self.shapes[x.of]
        return same and self.fills(x) and torch.equal(x.places, ordered(x.places.shape))

    def in_order(self, x: Value) -> Value:
        """Return the value as a whole time-major tensor; copy it if needed."""
        x = self.filled(x)
        return x if self.is_in_order(x) else self.copy(x)

    def padded(self, x: Value, pads: tuple[int, int], mode: str = "zeros") -> Value:
        """Add a padded copy, unused if the layer that reads it can pad; crop for negative pads."""
        (left, right), end = pads, x.places.shape[-1]
        x = self.in_order(Value(x.of, x.places[..., max(0, -left) : end - max(0, -right)]))
        padding: dict[str, Any] = {"padding": (max(0, left), max(0, right)), "padding_mode": mode}
        if not any(padding["padding"]):
            return x
        y = self.copy(x, kind="padding", **padding)
        self.pads[y.of] = x, padding
        return y

    def copy(self, x: Value, **options: Any) -> Value:
        """Copy a value in time-major order into a new tensor, or as the options specify."""
        if x.places.dim() not in (2, 3):
            raise NotImplementedError(f"receives {x.places.dim()} dimensions, not two or three")
        at: Array = x.places.reshape(x.places.shape[1], -1).numpy()
        shape, pads = list(x.places.shape), options.get("padding", (0, 0))
        if (step := even(at, self.shapes[x.of][1])) is None:  # the rows are times
            at = at.T
            options = {"over_time": True, "rows_whole": True, "stride": shape[1]} | options
            if (step := even(at, 1)) is None:
                raise NotImplementedError(
                    "reads samples in an order that the C layers do not support"
                )
        offsets, which = np.unique(at[:, 0], return_inverse=True)
        active = np.eye(len(offsets), dtype=bool)[which]
        made = self.add(Layer, x, len(at), at.shape[1] + sum(pads), **{
            "kind": "copy", "weight": active * 1.0, "active": active, "offsets": offsets,
            "bias": np.zeros(len(at)), "step": step,
        } | options)  # fmt: skip
        shape[-1] += sum(pads)
        return Value(made, ordered(shape))


def to_numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().double().cpu().numpy()
    return array


def ordered(shape: Sequence[int]) -> Tensor:
    """Return the time-major positions of ``(1, channels, length)`` or ``(1, features)``."""
    places = torch.arange(math.prod(shape))
    return places.view(shape[2], shape[1]).T[None] if len(shape) == 3 else places.view(*shape)


def even(at: Array, alone: int) -> int | None:
    """Return the distance between neighbours: None if it varies, ``alone`` for one position."""
    if at.shape[1] == 1:
        return alone
    step = int(at[0, 1] - at[0, 0])
    return step if step >= 0 and (np.diff(at, axis=1) == step).all() else None
