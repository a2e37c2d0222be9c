"""The ops around the sparse convolutions: derivatives, torch's op checks, wrong arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_arguments import fused_arguments
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparseconv.functional.fused import adaptive_avg_pool1d, batch_norm_relu, conv1x1
from sparseconv.ops.backends import extension

pytestmark = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")

ISAS = extension.isas() if extension is not None else []
OPS = torch.ops.sparseconv
DTYPES = (torch.float32, torch.float64)


def test_gradcheck(isas) -> None:
    for _ in isas():
        torch.manual_seed(0)
        x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(4, 3, 1, dtype=torch.float64, requires_grad=True)
        scale, shift = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in "ab")

        def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            module = nn.BatchNorm1d(3, dtype=torch.float64)
            del module.weight, module.bias
            module.weight, module.bias = scale, shift
            return batch_norm_relu(x, module)

        for function, inputs in (
            (conv1x1, (x, weight)),
            (norm, (x, scale, shift)),
            (
                lambda x: batch_norm_relu(x, nn.BatchNorm1d(3, affine=False, dtype=torch.float64)),
                (x,),
            ),
            (lambda x: adaptive_avg_pool1d(x, 3), (x,)),
        ):
            assert torch.autograd.gradcheck(function, inputs)
            assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.promise("P5")
@pytest.mark.parametrize("name", fused_arguments())
def test_a_signal_that_no_kernel_takes_is_named(name) -> None:
    op, (signal, *rest) = getattr(OPS, name), fused_arguments()[name]
    with pytest.raises(ValueError, match=r"of shape \(N, C, L\), but got \[\d+\]"):
        op(signal.flatten(), *rest)
    halves = [t.bfloat16() if isinstance(t, Tensor) else t for t in (signal, *rest)]
    with pytest.raises(TypeError, match=r"float32 or float64, but got BFloat16; use torch\.nn"):
        op(*halves)


@pytest.mark.promise("P5")
def test_the_gradient_is_named_whose_dtype_differs() -> None:
    x = torch.randn(2, 3, 9)
    with pytest.raises(TypeError, match=r"expected grad_output .* dtype Float on cpu.*Double"):
        OPS.pointwise_wgrad(x.double(), x)
    with pytest.raises(TypeError, match=r"expected grad_output .* dtype Double on cpu.*Float"):
        OPS.pointwise_wgrad(x, x.double())


@pytest.mark.promise("P5")
def test_bins_and_lengths_that_no_index_can_count() -> None:
    none = torch.empty(0, 3, 5)
    for op in (OPS.adaptive_avg_pool1d, OPS.adaptive_avg_pool1d_backward):
        assert op(none, 2**31 - 1).shape == (0, 3, 2**31 - 1)
        for bad in (0, -1, 2**31):
            with pytest.raises(ValueError, match=r"length and a number of bins in \[1, 2\*\*31\)"):
                op(none, bad)
            with pytest.raises(ValueError, match=r"length and a number of bins in \[1, 2\*\*31\)"):
                op(torch.empty(1).expand(0, 3, max(0, bad)), 5)


def test_flops_are_those_of_the_convolution() -> None:
    x, weight = torch.randn(2, 3, 20, requires_grad=True), torch.randn(4, 3, 1, requires_grad=True)
    counts = []
    for function in (conv1x1, F.conv1d):
        with FlopCounterMode(display=False) as counter:
            function(x, weight).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 2 * 3 * 4 * 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_torchs(dtype) -> None:
    x, weight = torch.randn(2, 3, 20, dtype=dtype), torch.randn(4, 3, 1, dtype=dtype)
    norm, twin = nn.BatchNorm1d(3, dtype=dtype), nn.BatchNorm1d(3, dtype=dtype)
    assert conv1x1(x, weight).equal(F.conv1d(x, weight))
    assert batch_norm_relu(x, norm).equal(F.relu(twin(x)))
    assert adaptive_avg_pool1d(x, 5).equal(F.adaptive_avg_pool1d(x, 5))
    with pytest.raises(RuntimeError):
        conv1x1(x, torch.randn(4, 2, 1, dtype=dtype))


def test_empty_batches_are_torchs() -> None:
    x = torch.zeros(0, 3, 20, requires_grad=True)
    weight = torch.ones(4, 3, 1, requires_grad=True)
    y = conv1x1(x, weight)
    dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert (y.shape, dx.shape) == ((0, 4, 20), (0, 3, 20))
    assert not dw.any()
