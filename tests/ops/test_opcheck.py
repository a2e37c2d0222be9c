"""torch.library.opcheck of every registered op: schema, fake kernel, autograd, dynamic shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from op_arguments import GEOMETRIES, arguments, lane_arguments, lane_dtypes

OPS = torch.ops.sparseconv

DIFFERENTIABLE = ("lanes_enter", "lanes_leave", "lanes_conv", "lanes_pointwise", "lanes_max_pool",
                  "lanes_mean", "lanes_resample", "lanes_activation",
                  "prelu")  # fmt: skip


def with_gradient(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor) and argument.is_floating_point():
        return argument.clone().requires_grad_()
    return argument


def signatures() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Each op with correct arguments, for every geometry, dtype and choice of optional ones."""
    for geometry in GEOMETRIES:
        for dtype in (torch.float32, torch.bfloat16):
            for name, args in arguments(geometry, dtype).items():
                yield name, args
                if name == "fprop":
                    yield name, (*args, True)
                    yield name, (*args[:2], None, *args[3:])
                elif name == "dgrad" and geometry.padding_mode == "zeros":  # a transposed one
                    bias = torch.randn(geometry.shape[1] * geometry.groups, dtype=dtype)
                    yield name, (*args, bias.requires_grad_())
    for dtype in lane_dtypes():
        for name, args in lane_arguments(dtype).items():
            yield name, args
            if name == "lanes_norm":  # its channels come from no vector
                yield name, (args[0], *[None] * 4, *args[5:])
            if name in DIFFERENTIABLE:
                yield name, tuple(with_gradient(argument) for argument in args)


@pytest.mark.promise("P7")
@pytest.mark.tool("torch.library.opcheck", "works", "every op, over 70 signatures")
def test_opcheck(count_cases: Callable[[int], None]) -> None:
    """All that a CPU runs; test_triton.py checks Triton's where they run."""
    torch.manual_seed(0)
    cases, checked = 0, set()
    for name, args in signatures():
        # In a graph with dynamic shapes it takes half a second: one signature of each op.
        tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
        tests += ["test_aot_dispatch_dynamic"] * (name not in checked)
        torch.library.opcheck(getattr(OPS, name).default, args, test_utils=tests)
        cases += 1
        checked.add(name)
    names = [name.partition("::") for name in torch._C._dispatch_get_all_op_names()]
    registered = {name for library, _, name in names if library == "sparseconv"}
    assert checked == {name for name in registered if not name.startswith(("triton_", "cuda_"))}
    assert cases > 70, cases
    count_cases(cases)


@pytest.mark.promise("P7")
@pytest.mark.parametrize(
    "name",
    ["lanes_activation_backward", "lanes_max_pool_backward", "lanes_norm_backward",
     "max_pool_backward", "prelu_backward"],
)  # fmt: skip
def test_ops_without_a_derivative_say_so(name: str) -> None:
    args = [with_gradient(argument) for argument in lane_arguments(torch.float32)[name]]
    first, *_ = (y,) if isinstance(y := getattr(OPS, name)(*args), torch.Tensor) else y
    with pytest.raises(RuntimeError, match="is not implemented"):
        first.sum().backward()
