"""PyTorch's own test data for conv1d: OpInfo's samples and errors, and ModuleInfo's Conv1d."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseconv as sc
from sparseconv.core.geometry import DTYPES

pytest.importorskip("expecttest")
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

# Importing them forbids this process to set flags such as cudnn.benchmark, which other tests do.
torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = True

OP = next(info for info in op_db if info.name == "nn.functional.conv1d")
MODULE = next(info for info in module_db if info.module_cls is nn.Conv1d)
DENSITIES = (1.0, 0.4)


def assert_same(got: Any, wanted: Any) -> None:
    """Within what torch's own tests allow, dtype by dtype."""
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype))


def leaf(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone().requires_grad_()


def split(sample: Any) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]:
    names = ("weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, sample.args, strict=False)) | sample.kwargs
    return sample.input, given.pop("weight"), given.pop("bias", None), given


@pytest.mark.promise("P1")
@pytest.mark.tool("PyTorch's OpInfo samples of conv1d", "works", "values, gradients; 4 dtypes")
@pytest.mark.parametrize(("number", "dtype"), [*enumerate(DTYPES)], ids=str)
def test_samples(number: int, dtype: torch.dtype, count_cases: Any) -> None:
    """Each sample with both densities, in two of the dtypes each."""
    torch.manual_seed(0)
    samples = [*OP.sample_inputs("cpu", dtype), *OP.reference_inputs("cpu", dtype)]
    for i, sample in enumerate(samples, number):
        x, weight, bias, options = split(sample)
        mask = torch.rand(weight.shape) < DENSITIES[i % 2]
        # In float64: torch's own half types sum with more than one rounding.
        dense = [leaf(t if t is None else t.double()) for t in (x, weight * mask, bias)]
        sparse = (leaf(x), leaf(weight[mask]), leaf(bias))
        y = sc.sparse_conv1d(*sparse[:2], sc.KernelCSR.from_mask(mask), sparse[2], **options)
        wanted = F.conv1d(*dense, **options)
        assert (y.shape, y.dtype) == (wanted.shape, dtype)
        grad = torch.randn_like(y)
        leaves = [[t for t in tensors if t is not None] for tensors in (sparse, dense)]
        dx, dw, *db = torch.autograd.grad(wanted, leaves[1], grad.double())
        assert_same([y, *torch.autograd.grad(y, leaves[0], grad)], [wanted, dx, dw[mask], *db])
    count_cases(len(samples))
    assert len(samples) >= 20


def sparse_of_dense(x: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
    pattern = sc.KernelCSR.from_mask(torch.ones(weight.shape, dtype=torch.bool))
    return sc.sparse_conv1d(x, weight.flatten(), pattern, *args, **options)


@pytest.mark.tool("PyTorch's OpInfo samples, integers and complex", "not applicable", "TypeError")
@pytest.mark.tool("PyTorch's OpInfo error inputs of conv1d", "works", "all: same kind, same words")
def test_error_inputs(count_cases: Any) -> None:
    """An integer convolution is not differentiable, and a complex one has no kernels here."""
    for dtype in OP.supported_dtypes("cpu") - set(DTYPES):
        x, weight, bias, options = split(next(iter(OP.sample_inputs("cpu", dtype))))
        with pytest.raises(TypeError, match=rf"one of the dtypes .*got {dtype}"):
            sparse_of_dense(x, weight, bias, **options)
    errors = list(OP.error_inputs("cpu"))
    for error in errors:
        x, weight, bias, options = split(error.sample_input)
        with pytest.raises(error.error_type, match=error.error_regex) as refused:
            F.conv1d(x, weight, bias, **options)
        words = error.error_regex
        if "three dimensions" in words:  # a pattern has the weight's shape: it is refused before
            words = "three dimensions"
        with pytest.raises(type(refused.value), match=words):
            sparse_of_dense(x, weight, bias, **options)
    assert len(errors) == 10
    count_cases(len(errors))


@pytest.mark.promise("P1")
@pytest.mark.tool("PyTorch's ModuleInfo of nn.Conv1d", "works")
@pytest.mark.parametrize("density", DENSITIES)
def test_module_inputs(density: float, count_cases: Any) -> None:
    dtype = torch.float64
    torch.manual_seed(0)
    cases = 0
    for case in MODULE.module_inputs_func(
        MODULE, device="cpu", dtype=dtype, requires_grad=True, training=True
    ):
        made, run = case.constructor_input, case.forward_input
        dense = nn.Conv1d(*made.args, **made.kwargs, dtype=dtype)
        mask = torch.rand(dense.weight.shape) < density
        with torch.no_grad():
            dense.weight.mul_(mask)
        sparse = sc.SparseConv1d.from_dense(dense, mask)
        got, wanted = (m(*copy.deepcopy(run.args), **run.kwargs) for m in (sparse, dense))
        assert_same([got], [wanted])
        if case.reference_fn is not None:  # a sample like a batch of one
            assert_same([got], [case.reference_fn(sparse, *run.args)])
        got.square().sum().backward()
        wanted.square().sum().backward()
        assert_same([sparse.values.grad], [dense.weight.grad[mask]])
        if dense.bias is not None:
            assert_same([sparse.bias.grad], [dense.bias.grad])
        cases += 1
    assert cases == 4
    count_cases(cases)
