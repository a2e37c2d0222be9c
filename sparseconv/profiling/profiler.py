"""``profile``: what each sparse layer of a model costs, and whether sparse pays there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sparseconv.core.checks import integer
from sparseconv.functional import sparse_conv1d
from sparseconv.measure import machine
from sparseconv.measure.timing import Estimate, Times, interleave, median_with_ci, ratio
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.restored import restored_afterwards
from sparseconv.ops.backends import extension
from sparseconv.profiling.result import LayerProfile, Measurement, ModelTime, Profile
from sparseconv.reference import pad

Passes = dict[str, Callable[[], object]]
Layer = TypeVar("Layer", bound=nn.Module)

# With n rounds the whole range of the samples covers the median with probability 1 - 2 / 2^n: six
# are needed before any interval can claim 95 %.
LEAST_ROUNDS = 6


@dataclass
class Call(Generic[Layer]):
    """A layer on an input as the model gave it, and how often it did."""

    name: str
    layer: Layer
    input: Tensor
    needs_dgrad: bool
    calls: int = 1


def profile(
    model: nn.Module,
    input: Tensor | tuple[Any, ...],
    *,
    backward: bool = True,
    rounds: int = 30,
    least_seconds: float = 2e-3,
    seed: int = 0,
) -> Profile:
    """Measure every ``SparseConv1d`` of a model beside the same layer dense.

    The model runs once to see what its layers are given. Then each layer is timed on its own,
    sparse and dense taking turns in shuffled order (``sparseconv.measure.timing``), and at last the
    whole model in turns with its sparse layers alone. Dense is what ``nn.Conv1d`` does:
    ``F.conv1d`` with the dense weight, after ``F.pad`` where the padding is not zeros or differs
    left and right. Backward computes what a training step would: no gradient of the input where
    none is needed (the first layer), none of frozen values. Threads, mode (train or eval) and
    autocast are those of the caller.

    The model is left as it was: mode, gradients, buffers, hooks, random generators. Hooks of its
    own run when the model runs, but not when a layer is timed.

    Args:
        model: any module that holds ``SparseConv1d`` layers, on the CPU.
        input: what the model takes; a tuple is several arguments.
        backward: time the backward pass too; False profiles inference, without gradients.
        rounds: pairs of measurements, at least 6.
        least_seconds: calls shorter than this are repeated until they last so long.
        seed: of the order and of the gradients that the layers are given.

    Returns:
        A ``Profile``: print it, or read its ``layers``; ``to_dict()`` is ready for json.

    Raises:
        TypeError: ``model`` is no module, ``input`` neither tensor nor tuple.
        ValueError: the model holds no ``SparseConv1d``, fails on the input, or reaches none of
            its sparse layers with it; too few rounds.
        NotImplementedError: a layer is on another device than the CPU.

    Example:
        >>> import sparseconv as sc
        >>> model = nn.Sequential(sc.SparseConv1d(8, 16, 9, padding=4), nn.ReLU())
        >>> found = sc.profile(model, torch.randn(4, 8, 50), rounds=6)
        >>> [(layer.name, layer.input_shape, layer.nnz) for layer in found.layers]
        [('0', (4, 8, 50), 230)]
    """
    layers = _sparse_layers(model)
    arguments = copied_arguments(input)
    timing = {"rounds": checked_rounds(rounds), "least_seconds": least_seconds, "seed": seed}
    with restored_afterwards(model), torch.inference_mode(False), torch.set_grad_enabled(backward):
        calls = capture(model, layers, arguments)
        reached = {call.name for call in calls}
        if not reached:
            raise ValueError(
                "the input reached none of the model's sparse layers "
                f"({', '.join(layers.values())}); give one that the model sends through them, in "
                "the mode (train or eval) that does"
            )
        peaks = {dtype: _fma_peak(dtype) for dtype in {_counted(call) for call in calls}}
        measured = [measure(call, backward, peaks[_counted(call)], timing) for call in calls]
        alone = [(call.calls, passes) for call, (_, passes) in zip(calls, measured, strict=True)]
        whole = _measure_model(model, arguments, alone, backward, timing)
    return Profile(
        layers=tuple(layer for layer, _ in measured),
        unreached=tuple(name for name in layers.values() if name not in reached),
        model=whole,
        threads=torch.get_num_threads(),
        fma_gflops={str(d).removeprefix("torch."): p for d, p in peaks.items() if p is not None},
        machine=machine.environment_info(),
    )


def _sparse_layers(model: nn.Module) -> dict[SparseConv1d, str]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, but got {type(model).__name__}")
    layers = {
        # torch.compile puts a wrapper around what the user wrote.
        module: name.replace("_orig_mod.", "") or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, SparseConv1d)
    }
    if not layers:
        raise ValueError(
            f"{type(model).__name__} holds no SparseConv1d, so there is nothing to profile; "
            "SparseConv1d.from_dense(conv, mask) makes one of an nn.Conv1d"
        )
    for layer, name in layers.items():
        check_measurable(name, layer.values.device)
    return layers


def check_measurable(name: str, device: torch.device) -> None:
    """Refuse a layer on a device where ``interleave`` would time the launches alone."""
    if device.type != "cpu":
        raise NotImplementedError(
            f"layers are measured on the CPU only, but layer {name!r} is on {device}; "
            "move the model and its input with .cpu()"
        )


def checked_rounds(rounds: int) -> int:
    """Refuse a number of measurements that no 95 % interval can be made of."""
    rounds = integer("rounds must be an int", rounds)
    if rounds < LEAST_ROUNDS:
        raise ValueError(
            f"rounds must be at least {LEAST_ROUNDS}, or no interval of 95 % exists, "
            f"but got {rounds}"
        )
    return rounds


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


def capture(
    model: nn.Module, layers: Mapping[Layer, str], arguments: tuple[Any, ...]
) -> list[Call[Layer]]:
    """Run the model once; calls of a layer that differ in numbers only are counted together."""
    calls: dict[tuple[Any, ...], Call[Layer]] = {}

    def see(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], _: Tensor) -> None:
        x: Tensor = args[0] if args else kwargs["input"]
        key = layer, x.shape, x.stride(), x.dtype, x.requires_grad
        if key in calls:
            calls[key].calls += 1
        else:  # cloned, for what follows may write into it
            calls[key] = Call(layers[layer], layer, x.detach().clone(), x.requires_grad)

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
    return list(calls.values())


def _eager() -> AbstractContextManager[None]:
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def _counted(call: Call[SparseConv1d]) -> torch.dtype:
    """The dtype of the multiply-adds: the half types accumulate in float32."""
    return torch.float64 if call.input.dtype == torch.float64 else torch.float32


def _fma_peak(dtype: torch.dtype) -> float | None:
    """GFLOP/s that this machine reaches with the caller's threads; None without the kernels."""
    if extension is None:
        return None
    from sparseconv.measure.peaks import measure

    name = str(dtype).removeprefix("torch.")
    (peak,) = measure([torch.get_num_threads()], [extension.isa()], [name])
    return float(peak["fma_gflops"])


def _convolutions(layer: SparseConv1d) -> dict[str, tuple[Tensor, Callable[..., Tensor]]]:
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


def measure(
    call: Call[SparseConv1d], backward: bool, peak: float | None, timing: dict[str, Any]
) -> tuple[LayerProfile, Passes]:
    """Time a layer, sparse and dense in turns.

    Returns its record, and its sparse passes to be timed again beside the model.
    """
    layer, pattern = call.layer, call.layer.pattern
    candidates: Passes = {}
    needs_dgrad = backward and call.needs_dgrad
    needs_wgrad = backward and layer.values.requires_grad
    for way, (weight, convolve) in _convolutions(layer).items():
        x = call.input.detach().requires_grad_(needs_dgrad)
        weight = weight.detach().requires_grad_(needs_wgrad)
        bias = None if layer.bias is None else layer.bias.detach()
        if bias is not None:
            bias.requires_grad_(backward and layer.bias is not None and layer.bias.requires_grad)
        arguments = x, weight, bias
        y = convolve(*arguments)
        candidates[f"{way} forward"] = partial(convolve, *arguments)
        wanted = [t for t in arguments if t is not None and t.requires_grad]
        if wanted:
            generator = torch.Generator().manual_seed(timing["seed"])
            grad = torch.empty_like(y).normal_(generator=generator)
            candidates[f"{way} backward"] = partial(
                torch.autograd.grad, y, wanted, grad, retain_graph=True
            )
    times = interleave(candidates, **timing)
    passes = ("forward", "backward") if "sparse backward" in candidates else ("forward",)
    outputs = y.numel() // layer.out_channels  # N * L_out
    work = {"forward": 1, "backward": needs_dgrad + needs_wgrad}
    measured = {
        which: _measurement(
            times,
            which,
            [2 * work[which] * outputs * n for n in (pattern.nnz, pattern.numel)],
            peak,
        )
        for which in passes
    }
    together = {
        way: sum(times[f"{way} {which}"] for which in passes) for way in ("sparse", "dense")
    }
    record = LayerProfile(
        name=call.name,
        calls=call.calls,
        input_shape=tuple(call.input.shape),
        output_shape=tuple(y.shape),
        weight_shape=pattern.shape,
        dtype=str(y.dtype).removeprefix("torch."),
        nnz=pattern.nnz,
        density=pattern.density,
        dgrad=needs_dgrad,
        wgrad=needs_wgrad,
        forward=measured["forward"],
        backward=measured.get("backward"),
        ratio=median_with_ci(together["dense"] / together["sparse"]),
    )
    return record, {which: candidates[f"sparse {which}"] for which in passes}


def _measurement(times: Times, which: str, flops: list[int], peak: float | None) -> Measurement:
    sparse, dense = times[f"sparse {which}"], times[f"dense {which}"]
    typical = median_with_ci(sparse)
    executed, whole = flops
    return Measurement(
        flops=executed,
        dense_flops=whole,
        sparse_ms=milliseconds(typical),
        dense_ms=milliseconds(median_with_ci(dense)),
        ratio=median_with_ci(dense / sparse),
        share_of_peak=None if peak is None else executed / typical.median / 1e9 / peak,
    )


def milliseconds(seconds: Estimate) -> Estimate:
    """An interval of seconds in milliseconds."""
    return Estimate(*(1e3 * value for value in seconds))


def _measure_model(
    model: nn.Module,
    arguments: tuple[Any, ...],
    layers: list[tuple[int, Passes]],
    backward: bool,
    timing: dict[str, Any],
) -> ModelTime:
    def run(*passes: str) -> None:
        for calls, layer in layers:
            for which in passes:
                for _ in range(calls if which in layer else 0):
                    layer[which]()

    candidates = model_passes(model, arguments, backward)
    trains = "step" in candidates
    # Shares are taken pair by pair: the machine's speed may have changed since the layers' turn.
    candidates["layers forward"] = partial(run, "forward")
    if trains:
        candidates["layers step"] = partial(run, "forward", "backward")
    times = interleave(candidates, **timing)
    return ModelTime(
        forward_ms=milliseconds(median_with_ci(times["forward"])),
        forward_share=ratio(times, "layers forward", "forward"),
        step_ms=milliseconds(median_with_ci(times["step"])) if trains else None,
        step_share=ratio(times, "layers step", "step") if trains else None,
    )


def model_passes(model: nn.Module, arguments: tuple[Any, ...], backward: bool) -> Passes:
    """Calls that run the whole model: ``"forward"``, and ``"step"`` where there are gradients."""

    def forward() -> list[Tensor]:
        return [t for t in tree_leaves(model(*arguments)) if isinstance(t, Tensor)]

    def step() -> object:
        outputs = _differentiable(forward())
        return torch.autograd.grad(
            outputs, wanted, [torch.ones_like(t) for t in outputs], allow_unused=True
        )

    leaves = tree_leaves(arguments)
    wanted = _differentiable([*model.parameters(), *(t for t in leaves if isinstance(t, Tensor))])
    trains = backward and bool(wanted) and bool(_differentiable(forward()))
    return {"forward": forward, "step": step} if trains else {"forward": forward}


def _differentiable(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor.requires_grad]
