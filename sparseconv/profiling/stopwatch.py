"""Time a model's layers and passes, sparse and dense interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparseconv.core.checks import count
from sparseconv.core.generators import generators_kept
from sparseconv.measure.records import INFERENCE, TRAINING, BeforeAfter, Counts, LayerTimes, Verdict
from sparseconv.measure.timing import (
    LEAST_ROUNDS,
    Times,
    collector_paused,
    interleave,
    milliseconds,
    ratio,
)
from sparseconv.nn.sparse_layer import SparseLayer, asks_for_gradients
from sparseconv.ops.backends import resolve_backend
from sparseconv.ops.orders import kernels_for
from sparseconv.running import Call, Layer

Passes = dict[str, Callable[[], object]]  # INFERENCE, and TRAINING where something has gradients


@dataclass
class Stopwatch:
    """Interleaves inference passes without gradients and training passes with gradients.

    With ``decides``, layers that differ only in which weights are active are timed once, in the
    pass that decides, and in more rounds while the verdict is unclear.
    """

    training: bool
    rounds: int
    least_seconds: float
    decides: bool = False
    known: dict[Any, dict[str, BeforeAfter]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count("rounds", self.rounds, LEAST_ROUNDS)  # fewer have no interval of 95 %

    @contextmanager
    def running(self, modules: Mapping[Layer, str]) -> Iterator[None]:
        """Run copies of models: collect garbage once before, restore random generators after.

        Reject modules, by name, on devices where ``time`` would time only launches.
        """
        for module, name in modules.items():
            device = next(module.parameters()).device
            if device.type != "cpu":
                raise NotImplementedError(
                    f"layers are measured only on the CPU, but layer {name!r} is on {device}; "
                    "move the model and its input with .cpu()"
                )
        with (
            generators_kept(), collector_paused(), torch.inference_mode(False),
            torch.set_grad_enabled(self.training),
        ):  # fmt: skip
            yield

    def time(self, candidates: Mapping[str, Passes]) -> Times:
        """Time interleaved passes: seconds by round, for names such as ``"sparse training"``."""
        return interleave(
            {f"{name} {which}": run for name, p in candidates.items() for which, run in p.items()},
            context=lambda name: torch.set_grad_enabled(name.endswith(TRAINING)),
            rounds=self.rounds,
            least_seconds=self.least_seconds,
            settled=_settled if self.decides else lambda _: True,
        )

    def compare(self, **candidates: Passes) -> dict[str, BeforeAfter]:
        """Time the passes of two candidates, the first one before a change, the other after it."""
        times, found = self.time(candidates), {}
        for which in (INFERENCE, TRAINING):
            first, second = (f"{name} {which}" for name in candidates)
            if first in times and second in times:
                found[which] = BeforeAfter(
                    milliseconds(times[first]), milliseconds(times[second]),
                    ratio(times, first, second),
                )  # fmt: skip
        return found


def _settled(times: Times) -> bool:
    """Return whether one layer is faster than the other, or both are about as fast."""
    speedup = ratio(times, *sorted(times))  # dense by sparse
    return Verdict.of(speedup) is not Verdict.UNCLEAR or round(speedup.median, 1) == 1


def _layer_passes(layer: nn.Module, call: Call) -> Passes:
    """Return the passes of a layer on one input, with training only if a gradient is needed."""
    x = call.input.detach().requires_grad_(call.needs_dgrad)
    wanted = _differentiable([x, *layer.parameters()])
    if not (call.trains and wanted):
        return {INFERENCE: torch.no_grad()(partial(layer, x))}
    forward = partial(layer, x)
    grad = torch.randn_like(forward())
    return {INFERENCE: forward, TRAINING: lambda: torch.autograd.grad(forward(), wanted, grad)}


def in_sequence(passes: Sequence[tuple[int, Passes]]) -> Passes:
    """Join repeated passes; in training, passes without gradients run only forward."""

    def run(which: str) -> None:
        for times, found in passes:
            task = found.get(which, found[INFERENCE])
            for _ in range(times):
                task()

    trains = any(TRAINING in found for _, found in passes)
    return {which: partial(run, which) for which in (INFERENCE, TRAINING)[: 1 + trains]}


def time_layer(
    name: str, layer: SparseLayer, calls: Sequence[Call], stopwatch: Stopwatch
) -> LayerTimes:
    """Time a layer and its dense version on all these calls together, interleaved."""
    pattern, first = layer.pattern, calls[0]
    x = [
        (c.input.shape, c.input.stride(), c.dtype, c.needs_dgrad, c.trains, c.count) for c in calls
    ]
    trains = [parameter.requires_grad for parameter in layer.parameters()]
    share = f"{pattern.density:.2g}" if stopwatch.decides else name
    kind = layer.transposed, layer.output_padding, layer.values.dtype, layer.backend
    key = (layer._geometry(), pattern.block, *kind, share, *trains, *x)
    if key not in stopwatch.known:
        passes = {
            name: in_sequence([(call.count, _layer_passes(twin, call)) for call in calls])
            for name, twin in (("dense", layer.to_dense()), ("sparse", layer))
        }
        if stopwatch.decides:
            passes = {name: dict([*found.items()][-1:]) for name, found in passes.items()}
        stopwatch.known[key] = stopwatch.compare(**passes)
    found = stopwatch.known[key]
    trained = asks_for_gradients(layer, "values")
    backend = resolve_backend(layer.backend, layer.values.device)
    executed = pattern.numel if backend == "reference" else pattern.nnz
    kernels, not_blocks = "", ""
    if backend == "cpp":
        kernels, not_blocks = kernels_for(pattern, layer._geometry(), first.dtype)
    flops = {}
    for which in found:
        per_weight = 0  # multiply-adds: one for each position of the output, in each such pass
        for call in calls:
            gradients = (trained and call.trains) + call.needs_dgrad if which == TRAINING else 0
            per_weight += call.count * call.positions * (1 + gradients)
        flops[which] = Counts(2 * per_weight * pattern.numel, 2 * per_weight * executed)
    return LayerTimes(
        name=name,
        weight_shape=pattern.shape,
        nnz=pattern.nnz,
        density=pattern.density,
        calls=sum(call.count for call in calls),
        input_shape=tuple(first.input.shape),
        dtype=str(first.dtype).removeprefix("torch."),
        backend=backend,
        kernels=kernels,
        not_blocks=not_blocks,
        dgrad=any(call.needs_dgrad for call in calls),
        wgrad=trained and any(call.trains for call in calls),
        verdict=Verdict.of((found.get(TRAINING) or found[INFERENCE]).speedup),
        times=found,
        flops=flops,
    )


def model_passes(model: nn.Module, arguments: tuple[Any, ...], training: bool) -> Passes:
    """Return calls that run the whole model."""

    def forward() -> list[Tensor]:
        return [t for t in tree_leaves(model(*arguments)) if isinstance(t, Tensor)]

    def step() -> None:
        model.zero_grad()
        outputs = _differentiable(forward())
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])

    trains = training and bool(_differentiable(forward()))
    return {INFERENCE: forward, TRAINING: step} if trains else {INFERENCE: forward}


def _differentiable(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor.requires_grad]
