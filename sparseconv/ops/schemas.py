"""Register the ops: schemas, shapes for the compiler, rules for torch.vmap, and backends.

The ops take only tensors and numbers, so torch.compile, export and the FLOP counter understand
them; ``nnz`` is always read from a tensor's shape.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from sparseconv.core.geometry import Geometry
from sparseconv.ops.backends import resolve_backend
from sparseconv.ops.checks import check

Fake = TypeVar("Fake", bound=Callable[..., Any])
# An op takes the two index tensors of a pattern, on the device of the others. The kernels read a
# plan, which is made at the first call with these two (csrc/cpu/plan/plan_cache.h, gpu_plans).
# ``int[] geometry`` is a ``core.geometry.Geometry``. A transposed convolution is dgrad with a
# bias, which requires padding_mode "zeros".
_COMPUTATIONS = (
    "fprop(Tensor input, Tensor values, Tensor? bias, Tensor crow_indices, Tensor col_indices,"
    " int[] geometry, bool relu=False) -> Tensor",
    "dgrad(Tensor grad_output, Tensor values, Tensor crow_indices, Tensor col_indices,"
    " int[] geometry, SymInt input_length, Tensor? bias=None) -> Tensor",
    "wgrad(Tensor grad_output, Tensor input, Tensor crow_indices, Tensor col_indices,"
    " int[] geometry) -> Tensor",
)
# The CUDA kernels with their plans, which the first three ops call for CUDA tensors.
_CUDA = (
    "cuda_fprop(Tensor input, Tensor values, Tensor? bias, Tensor rows, Tensor slots,"
    " int[] geometry, bool relu=False) -> Tensor",
    "cuda_dgrad(Tensor grad_output, Tensor values, Tensor rows, Tensor slots, int[] geometry,"
    " SymInt input_length, Tensor? bias=None) -> Tensor",
    "cuda_wgrad(Tensor grad_output, Tensor input, Tensor rows, Tensor slots, int[] geometry)"
    " -> Tensor",
)
_library = torch.library.Library("sparseconv", "DEF")  # type: ignore[no-untyped-call]
# Triton's kernels have separate ops, because other kernels run on the same devices.
for _schema in (
    *_COMPUTATIONS,
    "bias_grad(Tensor grad_output) -> Tensor",
    *(f"triton_{_schema}" for _schema in _COMPUTATIONS),
    *_CUDA,
):
    _library.define(_schema)  # type: ignore[no-untyped-call]


def _in_python(module: str, name: str) -> Callable[..., Tensor]:
    """Return an op's implementation in ``sparseconv.ops``, imported on the first call."""

    def launched(*args: Any) -> Tensor:
        if module == "triton.launch":
            resolve_backend("triton", args[0].device)  # raises if it cannot run
        launch = importlib.import_module(f"sparseconv.ops.{module}")
        result: Tensor = getattr(launch, name)(*args)
        return result

    return launched


for _name in ("fprop", "dgrad", "wgrad"):
    _library.impl(_name, _in_python("cuda", _name), "CUDA")  # type: ignore[no-untyped-call]
    _kernel = _in_python("triton.launch", _name)  # on every device, to raise with the reason
    _library.impl(f"triton_{_name}", _kernel, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def register_fake(library: torch.library.Library, *names: str) -> Callable[[Fake], Fake]:
    """Register the function that computes the shapes of these ops' results."""

    def register(fake: Fake) -> Fake:
        def checked(*args: Any, **kwargs: Any) -> Any:
            results = fake(*args, **kwargs)
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
            without = [tensor for tensor in tensors if tensor.device.type == "meta"]
            written = results if isinstance(results, tuple) else (results,)
            # A tensor on "meta" also brings calls with real tensors here, whose results no kernel
            # would write.
            if without and any(result.device.type != "meta" for result in written):
                raise TypeError(
                    "expected all tensors on the same device, but a tensor of shape "
                    f"{list(without[0].shape)} is on device 'meta', so it has no data; call "
                    "model.to_empty(device=...), then load a state dict"
                )
            return results

        for name in names:
            torch.library.register_fake(f"sparseconv::{name}", checked, lib=library)
        return fake

    return register


@register_fake(_library, "fprop", "triton_fprop")
def _fake_fprop(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: Sequence[int],
    relu: bool = False,
) -> Tensor:
    g = Geometry.from_numbers(geometry)
    check(input, values, col_indices, bias, g)
    return input.new_empty((input.shape[0], g.out_channels, g.output_length(input.shape[2])))


@register_fake(_library, "dgrad", "triton_dgrad")
def _fake_dgrad(
    grad_output: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: Sequence[int],
    input_length: int,
    bias: Tensor | None = None,
) -> Tensor:
    g = Geometry.from_numbers(geometry)
    check(grad_output, values, col_indices, bias, g, transposed=True)
    channels = g.group_channels * g.groups
    return grad_output.new_empty((grad_output.shape[0], channels, input_length))


@register_fake(_library, "wgrad", "triton_wgrad")
def _fake_wgrad(
    grad_output: Tensor, input: Tensor, crow_indices: Tensor, col_indices: Tensor, *_: Any
) -> Tensor:
    return input.new_empty(col_indices.shape)


@register_fake(_library, "bias_grad")
def _fake_bias_grad(grad_output: Tensor) -> Tensor:
    return grad_output.new_empty((grad_output.shape[1],))


# Under torch.vmap, a further dimension of series joins N; other calls are computed one by one.


def _vmap(op: Any) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        batched = [i for i, dim in enumerate(in_dims) if isinstance(dim, int)]
        if batched == [0] and not op._opname.endswith(("wgrad", "bias_grad")):
            series = args[0].movedim(in_dims[0], 0)
            y: Tensor = op(series.flatten(0, 1), *args[1:])
            return y.view(*series.shape[:2], *y.shape[1:]), 0
        parts = [
            [arg.select(in_dims[i], n) if i in batched else arg for i, arg in enumerate(args)]
            for n in range(info.batch_size)
        ]
        return torch.stack([op(*part) for part in parts]), 0

    return rule


class Kernels(NamedTuple):
    """Hold fprop, dgrad and wgrad of one backend."""

    fprop: Any
    dgrad: Any
    wgrad: Any


def _kernels(prefix: str) -> Kernels:
    names = (prefix + name for name in Kernels._fields)
    return Kernels(*(getattr(torch.ops.sparseconv, name).default for name in names))


# The dispatcher runs the C++ kernels for CPU tensors, and the CUDA kernels for CUDA tensors.
KERNELS = {"cpp": _kernels(""), "cuda": _kernels(""), "triton": _kernels("triton_")}
bias_grad = torch.ops.sparseconv.bias_grad.default
for _op in (*KERNELS["cpp"], *KERNELS["triton"], bias_grad):
    torch.library.register_vmap(_op, _vmap(_op), lib=_library)
