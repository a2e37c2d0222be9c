"""optimize_for_inference: right within a computed bound, and a module like any other."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from engines import ISAS
from folded import HALF, norms, operations, original_and_copy, outcome, settled, with_bounds
from model_state import everything
from torch import Tensor, nn

import sparseconv as sc
from sparseconv import SparseConv1d
from sparseconv.models import DSN
from sparseconv.models.dsn import PADDINGS

MODES = ("zeros", "replicate", "reflect", "circular")


def random_net(rng: random.Random, dtype: torch.dtype) -> list[nn.Module]:
    channels, layers = rng.randint(1, 4), []
    for _ in range(rng.randint(1, 3)):
        out, kernel, stride, dilation = (
            rng.choice(of) for of in (range(2, 20, 2), (1, 3, 5, 9), (1, 1, 2), (1, 2))
        )
        dense = rng.random() < 0.3 and dtype not in HALF  # torch sums halves as it likes
        options: dict[str, Any] = {
            "stride": stride, "dilation": dilation, "dtype": dtype,
            "padding": rng.choice((0, kernel // 2)) if dense else (rng.randint(0, 2), kernel // 2),
            "groups": rng.choice((1, 1, 2)) if channels % 2 == 0 else 1,
            "bias": rng.random() < 0.5, "padding_mode": rng.choice(MODES),
        }  # fmt: skip
        if not dense:
            options["density"] = rng.choice((0, 0.2, 1))
        layers.append((nn.Conv1d if dense else SparseConv1d)(channels, out, kernel, **options))
        if rng.random() < 0.8:
            eps = rng.choice((1e-5, 1e-3, 1.0))
            layers.append(nn.BatchNorm1d(out, eps, affine=rng.random() < 0.5, dtype=dtype))
        if rng.random() < 0.8:
            layers.append(nn.ReLU(inplace=rng.random() < 0.5))
        channels = out
    return layers


@pytest.mark.promise("P1")
@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_random_networks_within_the_computed_bound(
    dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch, count_cases: Any
) -> None:
    monkeypatch.setenv("SPARSECONV_BACKEND", backend)
    norms_of_models = 0
    for seed in range(60):
        torch.manual_seed(seed)
        layers = random_net(random.Random(seed), dtype)
        model = settled(nn.Sequential(*layers))
        before = everything(model)
        fast = sc.optimize_for_inference(model)
        assert everything(model) == before
        x = torch.randn(3, layers[0].in_channels, 70, dtype=dtype)
        exact, bound = with_bounds(layers, x, dtype)
        for isa in ISAS if backend == "cpp" else [""]:
            monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
            y = fast(x)
            assert y.dtype == dtype
            error = (y.double() - exact).abs()
            assert (error <= bound).all(), f"seed {seed} {isa}: {(error / bound).max():.3g}"
        norms_of_models += norms(model, x)
        assert norms(fast, x) == 0, f"seed {seed}"
    count_cases(60)
    assert norms_of_models > 90


@pytest.mark.promise("P7")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_relu_has_the_bits_of_relu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-40])
    for length in (1, 5, 16, 33, 200):
        layer = SparseConv1d(3, 20, 5, padding=2, density=0.5, dtype=dtype)
        x = torch.randn(5, 3, length, dtype=dtype)
        x[0, 0, :5] = special[:length].to(dtype)
        arguments = (layer.values, layer.pattern, layer.bias)
        for isa in ISAS:
            monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
            plain = sc.sparse_conv1d(x, *arguments, padding=2)
            fused = sc.sparse_conv1d(x, *arguments, padding=2, relu=True)
            torch.testing.assert_close(fused, plain.relu(), rtol=0, atol=0, equal_nan=True)
            assert plain.isnan().any()
            assert torch.equal(fused.isnan(), plain.isnan())


# The Dynamic Sparse Network


def dsn(in_channels: int, **options: Any) -> tuple[DSN, DSN]:
    return original_and_copy(lambda: DSN(in_channels, 3, nf=7, kernel_size=9, depth=3, **options))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("in_channels", [1, 4])
def test_dsn(in_channels: int, padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fast = dsn(in_channels, padding=padding)
    ran = operations(fast, torch.randn(5, in_channels, 24))
    assert not {"aten::batch_norm", "aten::relu", "aten::relu_"} & ran.keys()
    assert fast.cost(40).macs_executed == model.cost(40).macs_executed
    logits: list[Tensor] = []
    fast.head[-1].register_forward_pre_hook(lambda _, args: logits.append(args[0]))
    layers = [layer for block in model.blocks for layer in block] + list(model.head)[:-1]
    for length in (1, 24, 40, 300):  # either way to pool
        x = torch.randn(5, in_channels, length)
        exact, bound = with_bounds(layers, x, torch.float32)
        for isa in ISAS:
            monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
            assert fast(x).shape == (5, 3)
            assert ((logits[-1].double() - exact).abs() <= bound).all()


HEADS: dict[str, list[nn.Module]] = {
    "global average": [nn.Conv1d(4, 3, 1), nn.AdaptiveAvgPool1d(1)],
    "with a norm": [nn.Conv1d(4, 3, 1), nn.BatchNorm1d(3), nn.AdaptiveAvgPool1d((1,))],
    "bins before": [nn.AdaptiveAvgPool1d(7), nn.Conv1d(4, 3, 1), nn.AdaptiveAvgPool1d(1)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HEADS)
def test_the_average_comes_first(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [nn.ReLU(), *HEADS[name], nn.Flatten()]
    model = settled(nn.Sequential(*copy.deepcopy(layers)).to(dtype))
    fast = sc.optimize_for_inference(model)
    ran = operations(fast, torch.randn(4, 4, 9, dtype=dtype))
    assert not {"aten::batch_norm", "aten::adaptive_avg_pool1d"} & ran.keys()
    for length in (1, 2, 6, 7, 8, 50, 333):
        x = torch.randn(4, 4, length, dtype=dtype)
        exact, bound = with_bounds(list(model), x, dtype)
        assert ((fast(x).double() - exact).abs() <= bound).all()
    x[2, 1, 5] = float("nan")
    assert fast(x).isnan().all(1).tolist() == [False, False, True, False]
    others = (torch.zeros(4, 4, 0), torch.zeros(4, 3, 9), torch.zeros(9), torch.randn(4, 9))
    for other in others:
        assert outcome(fast, other.to(dtype)) == outcome(model, other.to(dtype))
    assert outcome(fast, x.half()) == outcome(model, x.half())


class NamedConv(SparseConv1d):
    name = "conv"


class NamedReLU(nn.ReLU):
    name = "relu"


class DenseConv(nn.Conv1d):
    name = "dense"


class Named(nn.Sequential):
    """As torchvision's: a class that only names what is in it."""


def test_subclasses_that_run_the_same_code_are_fused() -> None:
    x, norm = torch.randn(2, 4, 20), nn.SyncBatchNorm(8)
    named = Named(NamedConv(4, 8, 3, padding=1), norm, NamedReLU())
    model, fast = original_and_copy(
        lambda: nn.Sequential(named, DenseConv(8, 3, 1), nn.BatchNorm1d(3))
    )
    assert not {"aten::batch_norm", "aten::relu"} & operations(fast, x).keys()
    torch.testing.assert_close(fast(x), model(x))


# What the result can do


def test_copied_pickled_saved_and_loaded() -> None:
    (model, fast), x = dsn(2), torch.randn(2, 2, 30)
    y = fast(x)
    with torch.inference_mode():
        made_there = sc.optimize_for_inference(model)
    copies = (
        copy.deepcopy(fast),
        copy.copy(fast),
        pickle.loads(pickle.dumps(fast)),
        sc.optimize_for_inference(fast),
        made_there,
    )
    for other in copies:
        assert torch.equal(other(x), y)
        assert norms(other, x) == 0
    assert len(pickle.dumps(fast)) == len(pickle.dumps(copies[0])), "folded weights are not kept"
    assert fast.state_dict().keys() == model.state_dict().keys()
    _, other = dsn(2, init="random")
    other(x)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)
    assert not y.requires_grad
    x.requires_grad_()  # saliency maps
    (wanted,) = torch.autograd.grad(model(x).sum(), x)
    rounding = 8 * torch.finfo().eps * wanted.abs().max()  # torch's sums are in its own order
    for other in (fast, made_there):
        found = torch.autograd.grad(other(x).sum(), x)[0]
        assert (found - wanted).abs().max() <= rounding


def test_it_says_what_it_folded() -> None:
    fast = sc.optimize_for_inference(DSN(1, 2, nf=2, depth=2))
    assert "together: 0.conv+0.norm+0.relu, 1.conv+1.norm+1.relu\n" in repr(fast)
    with pytest.warns(UserWarning, match="but Sequential has none; nothing was folded"):
        sc.optimize_for_inference(nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.BatchNorm1d(2)))
