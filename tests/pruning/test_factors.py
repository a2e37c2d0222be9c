"""``sc.factorize``: the best factors that there are, really shared, in layers that compute so."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparseconv as sc
from sparseconv.pruning.factorize import METHODS, Sum, _factors


class Branches(nn.Module):
    """Layers of one shape side by side; their outputs are concatenated."""

    def __init__(self, n: int, o: int, i: int, k: int, **options: Any) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(i, o, k, **options) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in self.convs], dim=-2)


def branches(shape: tuple[int, int, int, int], seed: int = 0, **options: Any) -> Branches:
    torch.manual_seed(seed)
    return Branches(*shape, **options)


def composed(layer: nn.Module) -> Tensor:
    """The weight (O, I, K) that factors mean, in float64."""
    pairs = layer.terms if isinstance(layer, Sum) else [layer]
    return sum(
        torch.einsum("or,rik->oik", p.pointwise.weight[:, :, 0].double(), p.taps.weight.double())
        for p in pairs
    ).detach()


SHAPES = [(3, 4, 2, 3), (4, 2, 5, 4), (2, 6, 1, 3)]  # N, O, I, K: tall, wide and thin stacks
EPS = torch.finfo(torch.float64).eps


def stacked(convs: Any, method: str) -> np.ndarray:
    """The matrix whose best approximation the method asks for: one above or next to another."""
    weights = [conv.weight.detach().flatten(1).numpy() for conv in convs]
    return np.concatenate(weights, axis=int(method == "right"))


def rounding(matrix: np.ndarray) -> float:
    """What an SVD may be off by, as ``numpy.linalg.matrix_rank`` computes it."""
    return max(matrix.shape) * EPS * float(np.linalg.norm(matrix))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["left", "right", "svd"])
def test_no_weights_of_this_rank_are_closer(
    method: str, shape: tuple[int, int, int, int], count_cases: Callable[[int], None]
) -> None:
    """Eckart and Young: the best error is the norm of the singular values that are left out."""
    model = branches(shape, dtype=torch.float64)
    sets = [[f"convs.{i}"] for i in range(shape[0])]
    sets = sets if method == "svd" else [[*itertools.chain(*sets)]]
    most = min(stacked(model.convs[: len(sets[0])], method).shape)
    for rank in range(1, most + 1):
        small, report = sc.factorize(model, layers=sets, method=method, rank=rank)
        for names, found in zip(sets, report.layers, strict=True):
            convs = [model.get_submodule(name) for name in names]
            matrix = stacked(convs, method)
            best = float(np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:]))
            reached = [composed(small.get_submodule(name)) for name in names]
            pairs = zip(convs, reached, strict=True)
            error = float(torch.stack([c.weight.detach() - w for c, w in pairs]).norm())
            assert abs(error - best) <= 2 * rounding(matrix), (rank, error, best)
            relative = error / float(np.linalg.norm(matrix))
            assert abs(found.relative_error - relative) <= 2 * max(matrix.shape) * EPS
            assert found.rank == rank
            count_cases(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_of_two_shared_factors_come_back(shape: tuple[int, int, int, int]) -> None:
    n, o, i, k = shape
    model = branches(shape, dtype=torch.float64)
    # Terms in spaces at right angles, one of them larger, are what the singular values tell apart:
    # the first of the alternations finds them.
    u, w = (torch.linalg.qr(torch.randn(size, size).double())[0] for size in (i * k, o))
    shared = torch.randn(n, 1, o - 1).double() @ w[1:]
    own = u[:, 1:] @ torch.randn(n, i * k - 1, 1).double()
    weights = u[:, :1] @ shared / shared.norm() + 5 * (own / own.norm()) @ w[:1]
    for conv, weight in zip(model.convs, weights, strict=True):
        conv.weight.data.copy_(weight.T.reshape(o, i, k))
    small, report = sc.factorize(model, method="both", rank=1)
    bound = 4 * n * max(o, i * k) * EPS
    assert report.layers[0].relative_error <= bound
    for conv, layer in zip(model.convs, small.convs, strict=True):
        assert float((conv.weight.detach() - composed(layer)).norm()) <= bound * weights.norm()


@pytest.mark.parametrize("seed", range(2))
def test_both_falls_in_every_alternation_and_is_never_worse_than_one_of_them(seed: int) -> None:
    torch.manual_seed(seed)
    weights, rank = torch.randn(3, 5, 12).double(), 2
    noise = 60 * EPS * float(weights.norm())

    def residual(method: str, alternations: int = 30) -> float:
        pairs = _factors(weights, method, rank, alternations)
        return float((weights - sum(p @ q for p, q in pairs)).norm())

    falling = [residual("both", count) for count in range(1, 31)]
    assert falling[0] <= min(residual("left"), residual("right")) + noise
    assert all(b <= a + noise for a, b in itertools.pairwise(falling))
    assert falling[-1] < falling[0]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"padding": "same", "kernel_size": 6},
    {"padding": "same", "dilation": 3, "padding_mode": "reflect", "kernel_size": 4},
    {"padding": 2, "stride": 3, "bias": False},
    {"padding": (3,), "dilation": 2, "padding_mode": "circular", "bias": False},
    {"padding": "valid", "stride": 2, "padding_mode": "replicate"},
    {"padding": "same", "dtype": torch.float32},
]


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layers_compute_what_the_weight_of_their_factors_would(
    options: dict[str, Any], method: str, count_cases: Callable[[int], None]
) -> None:
    options = {"kernel_size": 5, "dtype": torch.float64, **options}
    model = branches((3, 4, 3, options.pop("kernel_size")), **options)
    small, _ = sc.factorize(model, method=method, rank=1 if method == "both" else 2)
    x = torch.randn(2, 3, 40, dtype=options["dtype"])
    for conv, layer in zip(model.convs, small.convs, strict=True):
        dense = copy.deepcopy(conv)
        dense.weight.copy_(composed(layer))
        torch.testing.assert_close(layer(x), dense(x))
        torch.testing.assert_close(layer(x[0]), dense(x[0]))  # another way through torch
        count_cases(2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_report_counts_the_parameters(method: str, bias: bool) -> None:
    model = branches((3, 8, 6, 5), bias=bias, dtype=torch.float64)
    small, report = sc.factorize(model, method=method, parameter_compression=2)
    for factor in small.parameters():  # nothing is saved or moved along with it
        assert factor.untyped_storage().nbytes() == factor.nbytes
        assert factor.is_contiguous()
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert report.parameters == (before, after)
    assert sum(found.parameters.before for found in report.layers) == before
    assert sum(found.parameters.after for found in report.layers) == after
    assert all(found.parameters.before >= 2 * found.parameters.after for found in report.layers)
    # One more would be too much.
    sets, rank = [found.layers for found in report.layers], report.layers[0].rank + 1
    more, _ = sc.factorize(model, layers=sets, method=method, rank=rank)
    assert before / sum(p.numel() for p in more.parameters()) < 2
    with pytest.raises(ValueError, match="expected a layer that gets smaller"):
        sc.factorize(model, method=method, rank=1000)


def test_the_report_measures() -> None:
    model = branches((3, 8, 6, 5))
    model.idle = nn.ModuleList(nn.Conv1d(8, 8, 7) for _ in range(2))  # not called
    x = torch.randn(4, 6, 20)
    _, report = sc.factorize(model, method="both", parameter_compression=2)
    measured = report.measure(x, training=True, rounds=6, least_seconds=0)
    called, idle = measured.layers
    for index in range(2):
        assert measured.macs[index] == model(x).shape[2] * called.macs[index]
    assert [bool(layer.times) for layer in (called, idle)] == [True, False]
    assert set(measured.times) == {"inference", "training"}


def test_all_sets_that_exist() -> None:
    model = nn.ModuleDict(
        {
            "a": nn.Conv1d(8, 8, 9),
            "b": nn.Conv1d(8, 8, 9, bias=False),
            "other": nn.Conv1d(8, 8, 9, padding=1),
            "grouped": nn.Conv1d(8, 8, 9, groups=2),
            "sparse": sc.SparseConv1d(8, 8, 9, density=0.5),
            "tiny": nn.Conv1d(2, 1, 1),
            "tiny too": nn.Conv1d(2, 1, 1),
            "linear": nn.Linear(3, 3),
        }
    )
    model["b again"] = model["b"]
    small, report = sc.factorize(model, rank=2)
    assert [found.layers for found in report.layers] == [("a", "b")]
    assert report.left.keys() == {"other", "grouped", "sparse", "tiny", "tiny too"}
    assert "no other layer has its shape" in report.left["other"]
    assert report.left["sparse"].startswith("it must be an nn.Conv1d, but is a SparseConv1d")
    assert "rank 2 turns 6 parameters into 10; choose a lower rank" in report.left["tiny"]
    assert type(small["sparse"]) is sc.SparseConv1d
    assert all(name in str(report) for name in report.left)
    _, alone = sc.factorize(model, method="svd", rank=2)
    assert [found.layers for found in alone.layers] == [("a",), ("b",), ("other",)]


def test_what_else_a_layer_has_stays() -> None:
    model = branches((2, 8, 6, 5))
    model.twin = model.convs[1]  # under another name as well
    model.convs[0].eval().bias.requires_grad_(False)
    for conv in model.convs:
        conv.weight.requires_grad_(False)
    with torch.inference_mode():
        small, _ = sc.factorize(model, layers=[["convs.0", "twin"]], rank=2)
    first, second = small.convs
    assert small.twin is second
    assert not first.taps.weight.requires_grad
    assert not second.pointwise.weight.requires_grad
    assert (first.training, second.training) == (False, True)
    assert not first.pointwise.bias.requires_grad
    assert second.pointwise.bias.requires_grad
    for conv, layer in zip(model.convs, small.convs, strict=True):
        assert layer.pointwise.bias.equal(conv.bias)
        assert layer.pointwise.bias is not conv.bias
        assert not layer.taps.weight.is_inference()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_factors_stand_where_the_layers_stood(method: str) -> None:
    model = branches((3, 8, 6, 5), device="cuda", dtype=torch.float64)
    small, _ = sc.factorize(model, method=method, rank=2)
    assert {p.device for p in small.parameters()} == {model.convs[0].weight.device}
    on_cpu, _ = sc.factorize(copy.deepcopy(model).cpu(), method=method, rank=2)
    x = torch.randn(2, 6, 20).double()
    torch.testing.assert_close(small(x.cuda()).cpu(), on_cpu(x))


def test_one_layer_alone_and_weights_that_are_zero() -> None:
    conv = nn.Conv1d(4, 4, 3)
    small, report = sc.factorize(conv, method="svd", rank=1)
    assert isinstance(small, nn.Sequential)
    assert report.layers[0].layers == ("",)
    nn.init.zeros_(conv.weight)
    small, report = sc.factorize(conv, method="svd", rank=1)
    assert report.layers[0].relative_error == 0
    x = torch.randn(2, 4, 9)
    assert small(x).equal(conv(x))
