"""The network as the C generator sees it: tensors, and the steps that compute them.

Most steps are layers, which all compute the same kind of sum. Samples are time-major (``x[t * C +
c]``), so an output's window begins at ``position * step``. In this window, weight (c, k) of a
convolution has offset ``k * dilation * C + c``, whatever the series' length. 1x1 convolutions,
linear layers, averages over time, copies and BatchNorm are also such sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
UNIT = 2.0**-24  # unit roundoff of float32
TINY = 2.0**-149  # its smallest number
_PADS = {"replicate": "edge", "reflect": "reflect", "circular": "wrap"}  # NumPy's


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """Computes a tensor, or some of its channels or times, from other tensors.

    Attributes:
        kind: a readable name.
        inputs, output: tensor numbers; 0 is the series.
        length, channels: the size of each input.
        positions: results per row.
        first, stride: result ``(position, row)`` is at ``first + position * stride + row``.
        rows_whole: the results of a row are contiguous, with the stride between rows.
        relu: negative outputs become 0.
    """

    kind: str
    inputs: tuple[int, ...]
    output: int
    length: int
    channels: int
    positions: int
    first: int = 0
    stride: int
    rows_whole: bool = False
    relu: bool = False

    @property
    def rows(self) -> int:
        return self.channels

    @property
    def places(self) -> Array:
        """Return the position of each result in the output, int64 ``(positions, rows)``."""
        position, row = np.arange(self.positions)[:, None], np.arange(self.rows)
        far, near = (row, position) if self.rows_whole else (position, row)
        return np.asarray(self.first + far * self.stride + near)

    def by_time(self, x: Array) -> Array:
        """Reshape inputs ``(n_cases, samples)`` to ``(n_cases, length, channels)``."""
        return x.reshape(len(x), self.length, self.channels)


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer(Step):
    """``y[position, row] = bias[row] + sum_j weight[row, j] * x[position * step + offsets[j]]``.

    Attributes:
        weight: float64 ``(rows, columns)``; 0 where inactive.
        active: bool ``(rows, columns)``, true for stored weights.
        offsets: int64 ``(columns,)``, ascending, into a window.
        bias: float64 ``(rows,)``.
        step: samples between the windows of successive positions.
        padding, padding_mode: time steps added around the input, as in ``nn.Conv1d``.
        zero: the number that zero padding writes.
        over_time: for averages, rows are times and positions are channels.
        largest: each result is the maximum of the active samples instead of a sum.
    """

    weight: Array
    active: Array
    offsets: Array
    bias: Array
    step: int
    padding: tuple[int, int] = (0, 0)
    padding_mode: str = "zeros"
    zero: int = 0
    over_time: bool = False
    largest: bool = False

    @property
    def rows(self) -> int:
        return len(self.bias)

    @property
    def padded(self) -> int:
        """Count the samples of the padded input."""
        return (self.length + sum(self.padding)) * self.channels

    @property
    def is_dense(self) -> bool:
        """Return whether every row has all weights of a window, so that no indices are needed."""
        whole = self.active.all() and (self.offsets == np.arange(len(self.offsets))).all()
        return bool(whole and not self.largest)

    @property
    def share(self) -> int:
        """Return how many successive rows have the same active positions (a block's rows)."""
        changes = (self.active[1:] != self.active[:-1]).any(1).nonzero()[0] + 1
        return math.gcd(*changes.tolist()) or self.rows

    @property
    def is_pointwise(self) -> bool:
        """Return whether the layer maps each time step separately, without ReLU or padding."""
        return (
            not self.over_time and not self.relu and self.step == self.channels
            and self.positions == self.length and not any(self.padding)
            and int(self.offsets[-1]) < self.channels
        )  # fmt: skip

    def pad(self, x: Array) -> Array:
        """Pad inputs ``(n_cases, length * channels)``."""
        zeros = self.padding_mode == "zeros"
        how: Any = {"constant_values": self.zero} if zeros else {"mode": _PADS[self.padding_mode]}
        padded = np.pad(self.by_time(x), ((0, 0), self.padding, (0, 0)), **how)
        return padded.reshape(len(x), -1)

    def sums(self, padded: Array, weight: Array) -> Array:
        """Compute the sums without bias in float64: ``(n_cases, positions, rows)``."""
        at = np.arange(self.positions)[:, None] * self.step + self.offsets
        if self.largest:
            return np.stack([padded[:, at[:, row]].max(2) for row in self.active], 2)
        return np.stack([case[at] @ weight.T for case in padded.astype(np.float64)])

    def finished(self, y: Array) -> Array:
        """Compute the stored outputs from sums that include the bias."""
        return np.maximum(y, 0) if self.relu else y

    def values(self, *inputs: Array) -> Array:
        """Compute ``(n_cases, positions, rows)`` from ``(n_cases, length * channels)``."""
        return self.finished(self.sums(self.pad(inputs[0]), self.weight) + self.bias)

    def error(self, inputs: Sequence[Array], errors: Sequence[Array]) -> Array:
        """Bound the rounding error of a sum of n products and a bias, in any order, fused or not.

        The bound is ``(n + 2) * 2**-24`` times the magnitude (Higham 2002, section 3.1), plus
        ``2**-24`` times the magnitude for rounded weights. Input errors are multiplied by the
        weights' magnitudes.
        """
        size = np.abs(self.weight)
        carried = self.sums(self.pad(errors[0]), size)
        if self.largest:
            return carried
        magnitude = self.sums(self.pad(np.abs(inputs[0])), size) + carried + np.abs(self.bias)
        bound: Array = carried + (self.active.sum(1) + 3) * (UNIT * magnitude + TINY)
        return bound


@dataclass(frozen=True, eq=False, kw_only=True)
class Pointwise(Step):
    """A function of each sample of one or two tensors.

    Attributes:
        function: computes the step in float64.
        expression: the C expression of ``p`` and ``q``.
        steepest: the largest slope of ``function``, if it takes one tensor.
    """

    function: Callable[..., Array]
    expression: str
    steepest: float = 1.0

    def values(self, *inputs: Array) -> Array:
        """Compute ``(n_cases, positions, rows)`` from inputs ``(n_cases, samples)``."""
        y = self.by_time(self.function(*inputs))
        return np.maximum(y, 0) if self.relu else y

    def error(self, inputs: Sequence[Array], errors: Sequence[Array]) -> Array:
        """Bound the error from the slope or, for two inputs, from the extremes of the inputs."""
        if len(inputs) == 1:
            rounds = bool(set(self.expression) & set("*/+("))
            rounding = rounds * 16 * UNIT * (1 + np.abs(inputs[0]))
            return self.by_time(self.steepest * errors[0] + rounding)
        y = self.function(*inputs)
        ends = [[x - off, x + off] for x, off in zip(inputs, errors, strict=True)]
        carried = np.max([np.abs(self.function(*corner) - y) for corner in product(*ends)], 0)
        return self.by_time(carried + UNIT * (np.abs(y) + carried) + TINY)


AnyStep = Layer | Pointwise


@dataclass(frozen=True, eq=False)
class Network:
    """Steps in the order in which they run; the last step, a layer, computes the scores.

    Attributes:
        input_shape: channels and length of a series.
        shapes: length and channels, by tensor number.
        ending: ``""``, ``"softmax"`` or ``"log_softmax"``.
        threshold: a single score above this value means class 1, otherwise class 0.
    """

    input_shape: tuple[int, int]
    steps: Sequence[AnyStep]
    shapes: Sequence[tuple[int, int]]
    ending: str
    threshold: float

    @property
    def layers(self) -> list[Layer]:
        return [step for step in self.steps if isinstance(step, Layer)]

    @property
    def classes(self) -> int:
        """Count the scores."""
        return self.steps[-1].places.size

    def labels(self, scores: Array) -> Array:
        """Return the classes ``(n_cases,)`` for scores ``(n_cases, n_classes)``."""
        if self.classes > 1:
            return np.asarray(scores.argmax(1))
        return np.asarray((scores[:, 0] > self.threshold).astype(int))

    def load(self, X: Array) -> Array:
        """Arrange series ``(n_cases, channels, length)`` for the first layer."""
        return X.astype(np.float64).transpose(0, 2, 1).reshape(len(X), -1)

    def put(self, step: Step, tensors: dict[int, Array], y: Array) -> None:
        """Store results ``(n_cases, positions, rows)`` in their tensor."""
        size = np.prod(self.shapes[step.output])
        tensors.setdefault(step.output, np.zeros((len(y), size)))[:, step.places] = y

    def tensors(self, X: Array) -> dict[int, Array]:
        """Compute every tensor ``(n_cases, samples)``, by number."""
        found = {0: self.load(X)}
        for step in self.steps:
            self.put(step, found, step.values(*(found[number] for number in step.inputs)))
        return found


def scores_and_bound(network: Network, X: Array) -> tuple[Array, Array]:
    """Compute the scores in float64, and bound the float32 error of each.

    Args:
        X: series ``(n_cases, channels, length)``.

    Returns:
        The scores and the bounds, each ``(n_cases, n_classes)``.
    """
    values = network.tensors(X)
    errors = {0: np.zeros_like(values[0])}
    for step in network.steps:
        known = [[held[number] for number in step.inputs] for held in (values, errors)]
        network.put(step, errors, step.error(*known))
    last = network.steps[-1].output
    return _ended(network.ending, values[last], errors[last])


def _ended(ending: str, x: Array, error: Array) -> tuple[Array, Array]:
    """Compute the scores and their error bounds from the last layer's outputs and bounds.

    expf and logf may err by two units in the last place. The difference from the maximum, its
    exponential, the sum and the logarithm are rounded.
    """
    if not ending:
        return x, error
    behind = x - x.max(1, keepdims=True)  # 0 and below
    total = np.exp(behind).sum(1, keepdims=True)
    log = behind - np.log(total)
    moved = error + error.max(1, keepdims=True)
    deepest = -behind.min(1, keepdims=True)
    relative = UNIT * (deepest + x.shape[1] + 8)  # of the sum
    off = moved + relative + UNIT * (2 * np.abs(behind) + 6 * np.log(total) + 4 * np.abs(log))
    if ending == "log_softmax":
        return log, off
    likely = np.exp(log)
    return likely, np.minimum(likely * np.expm1(np.minimum(off + 8 * UNIT, 50)) + TINY, 1)
