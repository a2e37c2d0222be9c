"""Measuring a model's layers and passes as a user runs them, sparse beside dense."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sparseconv.core.checks import integer
from sparseconv.core.pattern import KernelCSR
from sparseconv.functional import sparse_conv1d
from sparseconv.measure import machine
from sparseconv.measure.memory import FaultCounter
from sparseconv.measure.timing import Estimate, Times, collector_paused, interleave, median_with_ci
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.restored import restored_afterwards
from sparseconv.profiling.layer_times import LayerTimes, Measurement
from sparseconv.reference import pad

Passes = dict[str, Callable[[], object]]  # "forward", and "step" where something has gradients
Layer = TypeVar("Layer", bound=nn.Module)

# With n rounds the whole range of the samples covers the median with probability 1 - 2 / 2^n: six
# are needed before any interval can claim 95 %.
LEAST_ROUNDS = 6


class Stopwatch:
    """Times passes in turns: those named ``forward`` without gradients, ``step`` with them."""

    def __init__(self, backward: bool, rounds: int, least_seconds: float, seed: int) -> None:
        rounds = integer("rounds must be an int", rounds)
        if rounds < LEAST_ROUNDS:
            raise ValueError(
                f"rounds must be at least {LEAST_ROUNDS}, or no interval of 95 % exists, "
                f"but got {rounds}"
            )
        self.backward, self.seed = backward, seed
        self._options: dict[str, Any] = {
            "rounds": rounds, "least_seconds": least_seconds, "seed": seed,
        }  # fmt: skip
        self._page_faults: dict[str, float] = {}

    @contextmanager
    def running(self, *models: nn.Module) -> Iterator[None]:
        """Run models and leave no trace in them; garbage is collected once, at the beginning."""
        with ExitStack() as stack:
            for model in models:
                stack.enter_context(restored_afterwards(model))
            stack.enter_context(collector_paused())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(self.backward))
            yield

    def time(self, candidates: Passes) -> Times:
        """Seconds of each candidate, round by round; a name's last word is its pass."""
        faults = FaultCounter()

        @contextmanager
        def context(name: str) -> Iterator[None]:
            with torch.set_grad_enabled(name.endswith("step")), faults(name):
                yield

        times = interleave(candidates, context=context, **self._options)
        for name, share in faults.shares().items():
            which = name.split()[-1]
            self._page_faults[which] = max(share, self._page_faults.get(which, 0.0))
        return times

    def conditions(self) -> dict[str, Any]:
        """The fields of ``Measured`` beside the layers."""
        return {
            "threads": torch.get_num_threads(),
            "page_faults": self._page_faults,
            "machine": machine.environment_info(),
        }


def check_measurable(name: str, device: torch.device) -> None:
    """Refuse a layer on a device where ``interleave`` would time the launches alone."""
    if device.type != "cpu":
        raise NotImplementedError(
            f"layers are measured on the CPU only, but layer {name!r} is on {device}; "
            "move the model and its input with .cpu()"
        )


def copied_arguments(input: Any, name: str = "input") -> tuple[Any, ...]:
    """The model's arguments, copied: a model may write into them."""
    if not isinstance(input, Tensor | tuple):
        raise TypeError(
            f"{name} must be a tensor, or a tuple of the model's arguments, but got "
            f"{type(input).__name__}"
        )
    with torch.inference_mode(False):
        arguments: tuple[Any, ...] = tree_map_only(
            Tensor,
            lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad),
            input if isinstance(input, tuple) else (input,),
        )
    return arguments


@dataclass
class Call:
    """An input of a layer as the model gave it, and how often it gave one like it."""

    input: Tensor
    needs_dgrad: bool
    count: int = 1


def capture(
    model: nn.Module, layers: Iterable[Layer], arguments: tuple[Any, ...]
) -> dict[Layer, list[Call]]:
    """Run the model once; calls of a layer that differ in numbers only are counted together."""
    calls: dict[Layer, dict[tuple[Any, ...], Call]] = {}

    def see(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], _: Tensor) -> None:
        x: Tensor = args[0] if args else kwargs["input"]
        seen = calls.setdefault(layer, {})
        key = x.shape, x.stride(), x.dtype, x.requires_grad
        if key in seen:
            seen[key].count += 1
        else:  # cloned, for what follows may write into it
            seen[key] = Call(x.detach().clone(), x.requires_grad)

    handles = [layer.register_forward_hook(see, with_kwargs=True) for layer in layers]
    try:
        # A compiled model would not know of the hooks.
        with _eager():
            model(*arguments)
    except Exception as error:
        shapes = [tuple(t.shape) for t in tree_leaves(arguments) if isinstance(t, Tensor)]
        raise ValueError(
            f"{type(model).__name__} failed on the input (tensors of shape {shapes}): "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return {layer: list(seen.values()) for layer, seen in calls.items()}


def _eager() -> AbstractContextManager[None]:
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def sparse_and_dense(layer: SparseConv1d) -> dict[str, tuple[Tensor, Callable[..., Tensor]]]:
    """Per way its weight and the convolution ``(x, weight, bias) -> y``."""
    pattern, mode, padding = layer.pattern, layer.padding_mode, layer.resolved_padding
    stride, dilation, groups = layer.stride, layer.dilation, layer.groups
    left, right = padding

    def sparse(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return sparse_conv1d(
            x, values, pattern, bias, stride, padding, dilation, groups,
            padding_mode=mode, backend=layer.backend,
        )  # fmt: skip

    def dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if mode == "zeros" and left == right:
            return F.conv1d(x, weight, bias, stride, left, dilation, groups)
        x = pad(x, padding, mode)
        return F.conv1d(x, weight, bias, stride, 0, dilation, groups)

    return {"sparse": (layer.values, sparse), "dense": (layer.dense_weight(), dense)}


def _passes(
    layer: SparseConv1d,
    call: Call,
    weight: Tensor,
    convolve: Callable[..., Tensor],
    stopwatch: Stopwatch,
) -> Passes:
    """A layer on one input; ``"step"`` only where a gradient is asked for and needed."""

    def leaf(tensor: Tensor, needs_gradient: bool) -> Tensor:
        return tensor.detach().requires_grad_(stopwatch.backward and needs_gradient)

    x, weight = leaf(call.input, call.needs_dgrad), leaf(weight, layer.values.requires_grad)
    bias = None if layer.bias is None else leaf(layer.bias, layer.bias.requires_grad)
    forward = partial(convolve, x, weight, bias)
    wanted = _differentiable([t for t in (x, weight, bias) if t is not None])
    if not wanted:
        return {"forward": forward}
    generator = torch.Generator().manual_seed(stopwatch.seed)
    grad = torch.empty_like(forward()).normal_(generator=generator)
    return {"forward": forward, "step": lambda: torch.autograd.grad(forward(), wanted, grad)}


def in_sequence(passes: Sequence[tuple[int, Passes]]) -> Passes:
    """Several passes, so many times each, as one; those without a step run forward in it."""

    def run(which: str) -> None:
        for count, found in passes:
            task = found.get(which, found["forward"])
            for _ in range(count):
                task()

    names = ("forward", "step") if any("step" in found for _, found in passes) else ("forward",)
    return {which: partial(run, which) for which in names}


def time_layer(
    name: str,
    layer: SparseConv1d,
    calls: Sequence[Call],
    stopwatch: Stopwatch,
    peak: float | None = None,
) -> tuple[LayerTimes, Passes]:
    """Time a layer, sparse and dense in turns, on all these calls together.

    Args:
        peak: GFLOP/s of the machine, if known.

    Returns:
        Its record, and its sparse passes to be timed again beside the model.
    """
    pattern = layer.pattern
    passes = {
        way: in_sequence([(c.count, _passes(layer, c, *how, stopwatch)) for c in calls])
        for way, how in sparse_and_dense(layer).items()
    }
    times = stopwatch.time(
        {f"{way} {which}": run for way, found in passes.items() for which, run in found.items()}
    )
    with torch.no_grad():
        weight, convolve = sparse_and_dense(layer)["sparse"]
        outputs = [convolve(call.input, weight, layer.bias) for call in calls]
    wgrad = stopwatch.backward and layer.values.requires_grad
    dgrads = [stopwatch.backward and call.needs_dgrad for call in calls]
    channels = layer.out_channels
    positions = [c.count * y.numel() // channels for c, y in zip(calls, outputs, strict=True)]
    # Multiply-adds per weight: one for each position of the output, in each pass over the weights.
    work = {
        "forward": sum(positions),
        "step": sum(n * (1 + wgrad + dgrad) for n, dgrad in zip(positions, dgrads, strict=True)),
    }
    found = {
        which: _measurement(times, which, pattern, 2 * work[which], peak)
        for which in passes["sparse"]
    }
    record = LayerTimes(
        name=name,
        weight_shape=pattern.shape,
        nnz=pattern.nnz,
        density=pattern.density,
        calls=sum(call.count for call in calls),
        input_shape=tuple(calls[0].input.shape),
        output_shape=tuple(outputs[0].shape),
        dtype=str(outputs[0].dtype).removeprefix("torch."),
        dgrad=any(dgrads),
        wgrad=wgrad,
        forward=found["forward"],
        step=found.get("step"),
    )
    return record, passes["sparse"]


def _measurement(
    times: Times, which: str, pattern: KernelCSR, flops_per_weight: int, peak: float | None
) -> Measurement:
    sparse, dense = times[f"sparse {which}"], times[f"dense {which}"]
    flops, sparse_ms = flops_per_weight * pattern.nnz, milliseconds(sparse)
    return Measurement(
        flops=flops,
        dense_flops=flops_per_weight * pattern.numel,
        sparse_ms=sparse_ms,
        dense_ms=milliseconds(dense),
        ratio=median_with_ci(dense / sparse),
        share_of_peak=None if peak is None else flops / sparse_ms.median / 1e6 / peak,
    )


def milliseconds(seconds: NDArray[np.float64]) -> Estimate:
    """The median of times, in milliseconds."""
    return median_with_ci(1e3 * seconds)


def model_passes(model: nn.Module, arguments: tuple[Any, ...], backward: bool) -> Passes:
    """Calls that run the whole model."""

    def forward() -> list[Tensor]:
        return [t for t in tree_leaves(model(*arguments)) if isinstance(t, Tensor)]

    def step() -> object:
        outputs = _differentiable(forward())
        return torch.autograd.grad(
            outputs, wanted, [torch.ones_like(t) for t in outputs], allow_unused=True
        )

    inputs = [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]
    wanted = _differentiable([*model.parameters(), *inputs])
    trains = backward and bool(wanted) and bool(_differentiable(forward()))
    return {"forward": forward, "step": step} if trains else {"forward": forward}


def _differentiable(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor.requires_grad]
