"""The registered ops: schemas, shapes for the compiler, and what torch.vmap does with them.

Each computation is one op that never calls another. Tensors and sizes only, so torch.compile,
export and the FLOP counter see through it; ``nnz`` is always a tensor's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparseconv.core.geometry import output_length
from sparseconv.ops.backends import resolve_backend

SPARE = 4  # rows that a plan has beyond those of its entries: the kernels look ahead (kAhead)
Fake = TypeVar("Fake", bound=Callable[..., Any])
# ``int[] geometry`` is ``core.geometry.Geometry.numbers``. Its default is that of programs which an
# older sparseconv exported: they load, and the kernel says that they have to be exported again.
_PLANS = (
    "plan_fprop(Tensor crow_indices, Tensor col_indices, int[] geometry) -> Tensor",
    "plan_dgrad(Tensor crow_indices, Tensor col_indices, int[] geometry)"
    " -> (Tensor, Tensor, Tensor)",
    "plan_wgrad(Tensor crow_indices, Tensor col_indices, int[] geometry) -> (Tensor, Tensor)",
)
_COMPUTATIONS = (
    "fprop(Tensor input, Tensor values, Tensor? bias, Tensor crow_indices, Tensor rows,"
    " int[] geometry=[], bool relu=False) -> Tensor",
    "dgrad(Tensor grad_output, Tensor values, Tensor pointers, Tensor rows, Tensor index,"
    " int[] geometry, SymInt input_length) -> Tensor",
    "wgrad(Tensor grad_output, Tensor input, Tensor crow_indices, Tensor rows, int[] geometry,"
    " Tensor? batches=None) -> Tensor",
)
_library = torch.library.Library("sparseconv", "DEF")  # type: ignore[no-untyped-call]
# Triton's kernels have their own ops, because they run where others run too: the schema is the
# same, with their own plans in the place of the index tensors.
for _schema in (*_PLANS, *_COMPUTATIONS, *(f"triton_{_schema}" for _schema in _COMPUTATIONS)):
    _library.define(_schema)  # type: ignore[no-untyped-call]


def _triton(name: str) -> Callable[..., Tensor]:
    """Launch Triton's kernel, or say why it cannot run; Triton is imported at the first call."""
    schema = getattr(torch.ops.sparseconv, f"triton_{name}").default._schema
    needed = [(i, a.name) for i, a in enumerate(schema.arguments) if str(a.type) == "Tensor"]

    def launched(*args: Any) -> Tensor:
        for i, argument in needed:
            if args[i] is None:  # which torch lets pass
                raise TypeError(f"expected {argument} to be a tensor, but got None")
        resolve_backend("triton", args[0].device)
        from sparseconv.ops.triton import launch

        result: Tensor = getattr(launch, name)(*args)
        return result

    return launched


for _name in ("fprop", "dgrad", "wgrad"):  # on every device, for the reason why not
    _library.impl(f"triton_{_name}", _triton(_name), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def register_fake(library: torch.library.Library, *names: str) -> Callable[[Fake], Fake]:
    """Register what tells the shapes of these ops' results.

    One tensor without memory (device "meta") brings the others here as well: the result must not
    be memory that no kernel ever writes.
    """

    def register(fake: Fake) -> Fake:
        def checked(*args: Any, **kwargs: Any) -> Any:
            results = fake(*args, **kwargs)
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
            without = [tensor for tensor in tensors if tensor.device.type == "meta"]
            written = results if isinstance(results, tuple) else (results,)
            if without and any(result.device.type != "meta" for result in written):
                raise TypeError(
                    "expected all tensors on one device, but got one of shape "
                    f"{list(without[0].shape)} on device 'meta', which holds no numbers"
                )
            return results

        for name in names:
            torch.library.register_fake(f"sparseconv::{name}", checked, lib=library)
        return fake

    return register


@register_fake(_library, "plan_fprop")
def _fake_plan_fprop(crow_indices: Tensor, col_indices: Tensor, geometry: Sequence[int]) -> Tensor:
    return col_indices.new_empty((col_indices.shape[0] + SPARE,))


@register_fake(_library, "plan_dgrad")
def _fake_plan_dgrad(
    crow_indices: Tensor, col_indices: Tensor, geometry: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    pointers = crow_indices.new_empty((geometry[3] * (crow_indices.shape[0] - 1) + 1,))
    rows = col_indices.new_empty((col_indices.shape[0] + SPARE,))
    return pointers, rows, torch.empty_like(col_indices)


@register_fake(_library, "plan_wgrad")
def _fake_plan_wgrad(
    crow_indices: Tensor, col_indices: Tensor, geometry: Sequence[int]
) -> tuple[Tensor, Tensor]:
    batches = col_indices.new_empty((geometry[1] + 1 + 3 * col_indices.shape[0],))
    return torch.empty_like(col_indices), batches


def output_length_of(geometry: Sequence[int], length: int) -> int:
    return output_length(length, geometry[2], geometry[3], geometry[4:6], geometry[6])


@register_fake(_library, "fprop", "triton_fprop")
def _fake_fprop(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    rows: Tensor,
    geometry: Sequence[int],
    relu: bool = False,
) -> Tensor:
    length = output_length_of(geometry, input.shape[2])
    return input.new_empty((input.shape[0], geometry[0], length))


@register_fake(_library, "dgrad", "triton_dgrad")
def _fake_dgrad(
    grad_output: Tensor,
    values: Tensor,
    pointers: Tensor,
    rows: Tensor,
    index: Tensor,
    geometry: Sequence[int],
    input_length: int,
) -> Tensor:
    channels = geometry[1] * geometry[7]
    return grad_output.new_empty((grad_output.shape[0], channels, input_length))


@register_fake(_library, "wgrad", "triton_wgrad")
def _fake_wgrad(
    grad_output: Tensor,
    input: Tensor,
    crow_indices: Tensor,
    rows: Tensor,
    geometry: Sequence[int],
    batches: Tensor | None = None,
) -> Tensor:
    return input.new_empty(rows.shape)


# Under torch.vmap, one more dimension of series joins N; anything else is computed one by one.


def _vmap(op: Any) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        batched = [i for i, dim in enumerate(in_dims) if isinstance(dim, int)]
        if batched == [0] and not op._opname.endswith("wgrad"):
            series = args[0].movedim(in_dims[0], 0)
            y: Tensor = op(series.flatten(0, 1), *args[1:])
            return y.view(*series.shape[:2], *y.shape[1:]), 0
        parts = [
            [arg.select(in_dims[i], n) if i in batched else arg for i, arg in enumerate(args)]
            for n in range(info.batch_size)
        ]
        return torch.stack([op(*part) for part in parts]), 0

    return rule


for _name in ("fprop", "dgrad", "wgrad", "triton_fprop", "triton_dgrad", "triton_wgrad"):
    _op = getattr(torch.ops.sparseconv, _name).default
    torch.library.register_vmap(_op, _vmap(_op), lib=_library)
