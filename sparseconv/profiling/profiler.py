"""``profile``: the cost of each sparse layer, and whether its dense version is faster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from sparseconv.core.modules import deepcopy_model
from sparseconv.measure.progress import progress
from sparseconv.measure.records import (
    INFERENCE,
    TRAINING,
    Counts,
    LayerReport,
    LayerTimes,
    megaflops,
)
from sparseconv.measure.timing import LEAST_SECONDS, ROUNDS, Estimate, milliseconds
from sparseconv.nn.sparse_layer import SparseLayer
from sparseconv.profiling.stopwatch import Stopwatch, model_passes, time_layer
from sparseconv.running import capture, copied_arguments


@dataclass(frozen=True)
class ModelTime:
    """Times of a pass through the whole model and through its sparse layers.

    Attributes:
        ms: the model's median time in milliseconds, with a 95 % interval.
        flops: operations of all sparse layers: as dense layers, and executed.
        dense_ms, sparse_ms: sums of the layers' median times, each layer timed alone.
    """

    ms: Estimate
    flops: Counts
    dense_ms: float
    sparse_ms: float

    @classmethod
    def of(cls, which: str, ms: Estimate, layers: Iterable[LayerTimes]) -> ModelTime:
        """Sum over layers; in training, layers without gradients count only their forward pass."""
        found = [(layer, which if which in layer.times else INFERENCE) for layer in layers]
        return cls(
            ms,
            Counts(*map(sum, zip(*(layer.flops[name] for layer, name in found), strict=True))),
            sum(layer.times[name].before.median for layer, name in found),
            sum(layer.times[name].after.median for layer, name in found),
        )

    @property
    def share(self) -> float:
        """Return the layers' share of the model's time.

        It may be above 1: the model fuses some layers and runs a single backward pass.
        """
        return self.sparse_ms / self.ms.median


@dataclass(frozen=True, kw_only=True, repr=False)
class Profile(LayerReport):
    """Result of ``profile``; printing it shows a table.

    Attributes:
        layers: a ``LayerTimes`` per layer and kind of call, in the order of first calls. Calls of
            the same kind share the input shape, memory layout, dtype and required gradients.
        unreached: names of sparse layers that the input did not reach.
        model: a ``ModelTime`` for ``"inference"`` and, if measured, for ``"training"``.
        machine: processor, threads, instruction set and versions.

    Example: see ``profile``.
    """

    title: ClassVar[str] = "Profile of sparse layers"
    unreached: tuple[str, ...]
    model: Mapping[str, ModelTime]

    def summary(self) -> list[str]:
        """Return the totals and conditions, one line each."""
        lines = []
        for which, found in self.model.items():
            dense, executed = map(megaflops, found.flops)
            lines.append(
                f"{which}: sparse layers {found.sparse_ms:.2f} ms, as dense ones "
                f"{found.dense_ms:.2f} ms; {executed} of {dense} MFLOP executed; timed alone, they "
                f"take {found.share:.0%} of the model's {found.ms.median:.2f} ms"
            )
        if TRAINING not in self.model and any(TRAINING in layer.times for layer in self.layers):
            lines.append(
                "training of the whole model was not measured: none of its output tensors, alone "
                "or in lists, tuples and dicts, requires a gradient"
            )
        if self.unreached:
            lines.append("never reached by this input: " + ", ".join(self.unreached))
        return [*lines, *self.conditions()]


def profile(
    model: nn.Module,
    example_input: Any,
    *,
    training: bool = True,
    rounds: int = ROUNDS,
    least_seconds: float = LEAST_SECONDS,
    verbose: bool | None = None,
) -> Profile:
    """Measure every ``SparseConv1d`` of a model and the same layer made dense.

    A copy of the model runs once to record its layers' inputs. Then the whole model is timed, and
    each layer alone, sparse and dense (with ``to_dense``), interleaved in random order.
    Inference is a forward pass under ``torch.no_grad()``; training is a forward and a backward pass
    that computes the gradients of a real step. The number of threads, the mode (train or eval) and
    autocast are the caller's. A layer is timed without its forward hooks; other hooks and
    parametrizations add to its sparse time. First, call ``sparseconv.retain_freed_memory``.

    Args:
        model: a module with ``SparseConv1d`` layers, on the CPU.
        example_input: the model's argument, a tensor or array, or a tuple of arguments.
        training: also time training.
        rounds: pairs of measurements, at least 6.
        least_seconds: shorter calls are repeated until they take this time.
        verbose: show a progress bar (tqdm) on stderr; None shows it only in a terminal.

    Raises:
        TypeError, ValueError: an argument of the wrong type; too few rounds; no ``SparseConv1d`` in
            the model, or none that the input reaches.
        NotImplementedError: a layer is not on the CPU, or is a subclass that overrides ``forward``.

    Example:
        >>> import sparseconv as sc
        >>> model = nn.Sequential(sc.SparseConv1d(8, 16, 9), nn.ReLU())
        >>> found = sc.profile(model, torch.randn(4, 8, 50), rounds=6)
        >>> (layer,) = found.layers
        >>> layer.name, layer.input_shape, layer.nnz, layer.flops["inference"]
        ('0', (4, 8, 50), 230, Counts(before=387072, after=77280))
        >>> layer.speedup == layer.times["training"].speedup  # training decides
        True
    """
    with torch.inference_mode(False):
        model = deepcopy_model(model)
    layers = {  # torch.compile puts a wrapper around what the user wrote
        module: name.replace("_orig_mod", "").replace("..", ".").strip(".") or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, SparseLayer)
    }
    if not layers:
        raise ValueError(
            f"expected a model with a SparseConv1d, but {type(model).__name__} has none; "
            "convert a pruned model with sc.convert(model, example_input=x), whose report also "
            "shows the times"
        )
    arguments = copied_arguments(model, example_input)
    stopwatch = Stopwatch(training, rounds, least_seconds)
    with stopwatch.running(layers):
        _, called = capture(model, layers, arguments)
        if not called:
            raise ValueError(
                "the input reached none of the model's sparse layers "
                f"({', '.join(layers.values())}); pass an input that reaches them, and choose "
                "the mode (train or eval) in which they are called"
            )
        whole = model_passes(model, arguments, training)
        times = stopwatch.time({"model": whole})
        calls = [(layer, call) for layer, found in called.items() for call in found]
        for layer in called:  # copies; what a hook returns would be timed as the layer's output
            layer._forward_hooks.clear()
        bar = progress(calls, verbose, desc="layers")
        measured = [time_layer(layers[layer], layer, [call], stopwatch) for layer, call in bar]
    return Profile(
        layers=tuple(measured),
        unreached=tuple(name for layer, name in layers.items() if layer not in called),
        model={
            which: ModelTime.of(which, milliseconds(times[f"model {which}"]), measured)
            for which in whole
        },
    )
