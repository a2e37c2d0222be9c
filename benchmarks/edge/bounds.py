"""Bound the rounding errors of a float32 program."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from sparseconv.edge.layers import AnyStep, Array, Layer, Network, Pointwise

UNIT = 2.0**-24  # unit roundoff of float32
TINY = 2.0**-149  # its smallest number


def scores_and_bound(network: Network, X: Array) -> tuple[Array, Array]:
    """Compute the scores in float64, and bound the float32 error of each.

    Args:
        network: the steps of the program.
        X: series ``(n_cases, channels, length)``.

    Returns:
        The scores and the bounds, each ``(n_cases, n_classes)``.
    """
    values = network.tensors(X)
    errors = {0: np.zeros_like(values[0])}
    for step in network.steps:
        known = [[held[number] for number in step.inputs] for held in (values, errors)]
        network.put(step, errors, _error(step, *known))
    last = network.steps[-1].output
    return network.scores(X), _of_scores(network.ending, values[last], errors[last])


def _error(step: AnyStep, inputs: Sequence[Array], errors: Sequence[Array]) -> Array:
    if isinstance(step, Pointwise):
        return _of_function(step, inputs, errors)
    return _of_sums(step, inputs[0], errors[0])


def _of_sums(layer: Layer, x: Array, error: Array) -> Array:
    """Bound the rounding error of a sum of n products and a bias, in any order, fused or not.

    The bound is ``(n + 2) * 2**-24`` times the magnitude (Higham 2002, section 3.1), plus
    ``2**-24`` times the magnitude for rounded weights. Input errors are multiplied by the weights'
    magnitudes.
    """
    size = np.abs(layer.weight)
    carried = layer.sums(layer.pad(error), size)
    if layer.largest:
        return carried
    magnitude = layer.sums(layer.pad(np.abs(x)), size) + carried + np.abs(layer.bias)
    bound: Array = carried + (layer.active.sum(1) + 3) * (UNIT * magnitude + TINY)
    return bound


def _of_function(step: Pointwise, inputs: Sequence[Array], errors: Sequence[Array]) -> Array:
    """Bound the error from the extremes of the inputs."""
    y = step.function(*inputs)
    ends = [[x - off, x + off] for x, off in zip(inputs, errors, strict=True)]
    carried = np.max([np.abs(step.function(*corner) - y) for corner in product(*ends)], 0)
    rounding = UNIT * (np.abs(y) + carried) + TINY
    if len(inputs) == 1 and set(step.expression) & set("*/+("):  # several operations
        rounding = 16 * UNIT * (1 + np.abs(inputs[0]) + carried)
    return step.by_time(carried + rounding)


def _of_scores(ending: str, x: Array, error: Array) -> Array:
    """Bound the scores' errors, given the last layer's outputs and their errors.

    expf and logf may err by two units in the last place. The difference from the maximum, its
    exponential, the sum and the logarithm are rounded.
    """
    if not ending:
        return error
    behind = x - x.max(1, keepdims=True)  # 0 and below
    total = np.log(np.exp(behind).sum(1, keepdims=True))
    moved = error + error.max(1, keepdims=True)
    relative = UNIT * (-behind.min(1, keepdims=True) + x.shape[1] + 8)  # of the sum
    log = behind - total
    off: Array = moved + relative + UNIT * (2 * np.abs(behind) + 6 * total + 4 * np.abs(log))
    if ending == "log_softmax":
        return off
    bound: Array = np.minimum(np.exp(log) * np.expm1(np.minimum(off + 8 * UNIT, 50)) + TINY, 1)
    return bound
