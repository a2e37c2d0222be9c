"""``SparseConvTranspose1d`` does what ``nn.ConvTranspose1d`` does, wherever a layer is used."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap
from torch.nn.utils import prune

import sparseconv as sc
from sparseconv import SparseConvTranspose1d
from sparseconv.testing import error_bound

OPTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 4, "padding": 2, "output_padding": 3, "groups": 2},
    {"stride": 2, "dilation": 3, "output_padding": 2, "bias": False},
    {"stride": (3,), "padding": (1,), "dtype": torch.float64},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def made(**options: Any) -> tuple[SparseConvTranspose1d, Any, Tensor]:
    """A layer, the dense layer that computes the same, and an input."""
    torch.manual_seed(0)
    layer = SparseConvTranspose1d(4, 6, 5, density=0.3, **options)
    return layer, layer.to_dense(), torch.randn(2, 4, 9, dtype=layer.values.dtype)


def assert_close(y: Tensor, dense: nn.ConvTranspose1d, x: Tensor, **call: Any) -> None:
    """Check an output against the dense layer's in float64, within the computed bound."""
    exact = copy.deepcopy(dense).double()(x.double(), **call)
    magnitude, terms = copy.deepcopy(dense).double(), copy.deepcopy(dense).double()
    for parameter, ones in zip(magnitude.parameters(), terms.parameters(), strict=True):
        parameter.data.abs_()
        ones.data.copy_(ones.data != 0)
    sums = magnitude(x.double().abs(), **call), terms(torch.ones_like(x).double(), **call)
    assert y.shape == exact.shape
    assert ((y - exact).abs() <= error_bound(exact, *sums, y.dtype)).all()


@every_option
def test_like_the_dense_layer(options):
    layer, dense, x = made(**options)
    assert type(dense) is nn.ConvTranspose1d
    assert repr(layer).startswith(f"SparseConvTranspose1d({dense.extra_repr()}, nnz=")
    assert_close(layer(x), dense, x)
    assert layer(x[0]).equal(layer(x)[0])
    assert layer(x[:0]).shape == dense(x[:0]).shape
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == dense(x).dtype
    least = layer._geometry().transposed_length(9, 0)
    for size in (least, least + layer.stride[0] - 1):
        assert_close(layer(x, output_size=[size]), dense, x, output_size=[size])
    again = SparseConvTranspose1d.from_dense(dense)
    assert again.pattern == layer.pattern
    assert again(x).equal(layer(x))


CROPPED = {"stride": 2, "padding": 3, "output_padding": 1}  # one sample to none


@pytest.mark.parametrize(
    ("size", "options"), [((2, 4, 1), CROPPED), ((0, 4, 1), CROPPED), ((0, 4, 0), {})]
)
def test_empty_series_like_the_dense_layer(size, options):
    layer, dense, _ = made(**options)
    for part in (layer, dense):  # compiled, torch refuses the dense layer's, too
        x = torch.randn(size, requires_grad=True)
        y = part(x)
        assert y.shape == dense(x).shape
        y.sum().backward()
        assert x.grad.shape == size
        assert not any(parameter.grad.any() for parameter in part.parameters())


@pytest.mark.promise("P7")
@every_option
def test_gradients_of_every_order_and_transforms(options):
    layer, _, x = made(**options)
    layer, x = layer.double(), x.double()
    parameters = dict(layer.named_parameters())

    def run(x: Tensor, *given: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(parameters, given, strict=True)), (x,))

    leaves = (x[:1, :, :3].clone().requires_grad_(), *parameters.values())
    checks = {"check_batched_grad": True}
    assert gradcheck(run, leaves, check_forward_ad=True, **checks)
    assert gradgradcheck(run, leaves, check_fwd_over_rev=True, **checks)
    given = tuple(parameters.values())
    per_sample = vmap(grad(lambda values, x: run(x, values, *given[1:]).sum()), (None, 0))
    whole = torch.autograd.grad(run(x, *given).sum(), given[0])[0]
    torch.testing.assert_close(per_sample(given[0], x).sum(0), whole)


@pytest.mark.promise("P7")
@pytest.mark.parametrize("options", OPTIONS[1:3], ids=str)
def test_compile_and_export(options):
    layer, _, x = made(**options)
    y = layer(x)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    wanted = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    found = torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))
    assert all(a.equal(b) for a, b in zip(found, wanted, strict=True))
    length = torch.export.Dim("length", min=2)
    program = torch.export.export(layer, (x,), dynamic_shapes=({2: length},))
    longer = torch.cat((x, x), 2)
    assert program.module()(longer).equal(layer(longer))


def test_convert_profile_and_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose1d(8, 16, 8, 4), nn.ReLU(), nn.Conv1d(16, 4, 5))
    x = torch.randn(2, 8, 20)
    for i in (0, 2):
        prune.l1_unstructured(model[i], "weight", amount=0.9)
    sparse, report = sc.convert(model)
    assert [layer.weight_shape for layer in report.layers] == [(8, 16, 8), (4, 16, 5)]
    assert type(sparse[0]) is SparseConvTranspose1d
    back = sc.to_dense(sparse)
    assert torch.equal(back[0].weight, model[0].weight)
    assert_close(sparse[0](x), back[0], x)
    report = sc.convert(model, x, layers=["0"], training=False, rounds=6).report
    profile = sc.profile(sparse, x, rounds=6)
    for layer in (report.layers[0], profile.layers[0]):
        assert layer.flops["inference"].after == 2 * 2 * 20 * sparse[0].pattern.nnz
    assert sc.optimize_for_inference(sparse.eval())(x).equal(sparse(x))


def test_the_function_needs_no_layer():
    layer, _, x = made(stride=3, padding=1, block=2)
    assert layer._geometry().block == layer.pattern.block == (2, 2)
    y = sc.sparse_conv_transpose1d(x, layer.values, layer.pattern, layer.bias, 3, 1)
    assert y.equal(layer(x))
    reference = sc.sparse_conv_transpose1d(
        x, layer.values, layer.pattern, layer.bias, 3, 1, backend="reference"
    )
    assert reference.equal(F.conv_transpose1d(x, layer.dense_weight(), layer.bias, 3, 1))
