"""``profile``: what each sparse layer of a model costs, and whether sparse pays there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.measure import machine
from sparseconv.measure.timing import milliseconds
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.modules import check_module, deepcopy_model
from sparseconv.profiling.report import ModelTime, Profile
from sparseconv.profiling.stopwatch import (
    Stopwatch,
    capture,
    check_on_cpu,
    copied_arguments,
    model_passes,
    time_layer,
)


def profile(
    model: nn.Module,
    input: Tensor | tuple[Any, ...],
    *,
    backward: bool = True,
    rounds: int = 30,
    least_seconds: float = 2e-3,
) -> Profile:
    """Measure every ``SparseConv1d`` of a model and the same layer dense.

    The model runs once to see what its layers are given. Then each layer is timed alone, sparse and
    dense interleaved in shuffled order, and at last the whole model. Dense is what ``to_dense``
    makes of a layer: an ``nn.Conv1d``, after a padding layer where it pads left and right
    differently.

    Two passes are timed, each as a loop of calls runs it: inference, a forward pass under
    ``torch.no_grad()``, and training, a forward pass that records gradients and its backward pass.
    Training computes what a step would: no gradient of the input where none is needed (the first
    layer), none of frozen values. Threads, mode (train or eval) and autocast are those of the
    caller. Call ``sparseconv.retain_freed_memory`` before, or page faults may take much of the
    time.

    What runs is a copy (``copy.deepcopy``), so the model does not change, nor do torch's, NumPy's
    and Python's random generators. Hooks run when the copy runs, but not when a layer is
    timed.

    Args:
        model: any module that holds ``SparseConv1d`` layers, on the CPU.
        input: what the model accepts; a tuple is several arguments.
        backward: time training too; False profiles inference only.
        rounds: pairs of measurements, at least 6.
        least_seconds: calls shorter than this are repeated until they last so long.

    Returns:
        A ``Profile``: print it, read its ``layers``, or ``save("profile.html")`` (or ``.json``).

    Raises:
        TypeError: ``model`` is not a module, ``input`` neither tensor nor tuple.
        ValueError: the model holds no ``SparseConv1d``, fails on the input, or reaches none of
            its sparse layers with it; too few rounds.
        NotImplementedError: a layer is on another device than the CPU, or a subclass with its
            own ``forward``.

    Example:
        >>> import sparseconv as sc
        >>> model = nn.Sequential(sc.SparseConv1d(8, 16, 9, padding=4), nn.ReLU())
        >>> found = sc.profile(model, torch.randn(4, 8, 50), rounds=6)
        >>> [(layer.name, layer.input_shape, layer.nnz) for layer in found.layers]
        [('0', (4, 8, 50), 230)]
    """
    check_module(model)
    with torch.inference_mode(False):
        model = deepcopy_model(model)
    layers = _sparse_layers(model)
    check_on_cpu(layers)
    arguments = copied_arguments(input)
    stopwatch = Stopwatch(backward, rounds, least_seconds)
    with stopwatch.running():
        called = capture(model, layers, arguments)
        if not called:
            raise ValueError(
                "the input reached none of the model's sparse layers "
                f"({', '.join(layers.values())}); give one that the model sends through them, in "
                "the mode (train or eval) that does"
            )
        calls = [(layer, call) for layer, found in called.items() for call in found]
        measured = [time_layer(layers[layer], layer, [call], stopwatch) for layer, call in calls]
        whole = model_passes(model, arguments, backward)
        times = stopwatch.time({"model": whole})
    return Profile(
        layers=tuple(measured),
        unreached=tuple(name for layer, name in layers.items() if layer not in called),
        model={
            which: ModelTime.of(which, milliseconds(times[f"model {which}"]), measured)
            for which in whole
        },
        machine=machine.environment_info(),
    )


def _sparse_layers(model: nn.Module) -> dict[SparseConv1d, str]:
    layers = {
        # torch.compile puts a wrapper around what the user wrote.
        module: ".".join(part for part in name.split(".") if part != "_orig_mod")
        or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, SparseConv1d)
    }
    if not layers:
        raise ValueError(
            f"{type(model).__name__} holds no SparseConv1d, so there is nothing to profile; "
            "SparseConv1d.from_dense(conv, mask) makes one of an nn.Conv1d"
        )
    for layer, name in layers.items():
        if type(layer).forward is not SparseConv1d.forward:
            raise NotImplementedError(
                f"layers are timed as the convolution that SparseConv1d is, but layer {name!r} is "
                f"a {type(layer).__name__} with its own forward; put what that does into "
                "modules before and after a SparseConv1d"
            )
    return layers
