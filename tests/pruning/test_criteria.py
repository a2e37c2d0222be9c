"""Scores of filters against loops over the formulas, unit by unit, weight by weight."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_state import everything
from networks import SETS, UNITS, ChannelsLast, Mixed, classifier, data
from random_networks import RandomNetwork
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sparseconv as sc
from sparseconv.pruning import DSP, HC, WHC, Criterion, Jacobian, Magnitude
from sparseconv.pruning.evolution import Evolutionary
from sparseconv.pruning.tracing import trace

UNIT = 2.0**-53

x, y = data(6)


def scored(criterion: Criterion, model: nn.Module, length: int = 12) -> tuple[Tensor, Any]:
    """Scores, the model being left alone, and the channels."""
    channels = trace(model, (torch.zeros(1, 2, length).double(),))
    before = everything(model)
    scores = criterion.scores(model, channels)
    assert everything(model) == before
    assert (scores.dtype, scores.shape) == (torch.float64, (channels.n_units,))
    return scores, channels


def by_unit(scores: Tensor, channels: Any) -> list[float]:
    """In the order of ``UNITS``."""
    rows = [next(iter(outputs.items())) for outputs, _ in UNITS]
    return [scores[channels.layers[name].outputs[row[0]]].item() for name, row in rows]


def weights(model: nn.Module, unit: int) -> list[float]:
    """Those of a unit's filters, zeros of sparse layers too, one after another."""
    found: list[float] = []
    for name, rows in UNITS[unit][0].items():
        layer = model.get_submodule(name)
        if name == "norm":
            continue
        dense = layer.dense_weight() if isinstance(layer, sc.SparseConv1d) else layer.weight
        for row in rows:
            found += dense[row].flatten().tolist()
    return found


def norm(values: list[float], p: float = 2) -> float:
    return sum(abs(value) ** p for value in values) ** (1 / p)


def hybrid(filters: list[list[float]], weighted: bool) -> Iterator[float]:
    for i, one in enumerate(filters):
        total = 0.0
        for j, other in enumerate(filters):
            if i == j:
                continue
            norms = norm(one) * norm(other)
            cos = math.fsum(a * b for a, b in zip(one, other, strict=True)) / norms if norms else 0
            total += (norm(other) if weighted else 1) * (1 - abs(cos))
        yield norm(one) * total


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_magnitude(p: float) -> None:
    model = Mixed()
    found = by_unit(*scored(Magnitude(p), model))
    for unit, score in enumerate(found):
        own = weights(model, unit)
        wanted = norm(own, p)
        assert abs(score - wanted) <= 2 * (len(own) + 10) * UNIT * wanted


@pytest.mark.parametrize("special", ["none", "zero", "twins", "opposite", "all zero"])
@pytest.mark.parametrize("criterion", [HC(), WHC()], ids=str)
def test_hybrid_criteria_by_their_definition(criterion: Criterion, special: str) -> None:
    model = Mixed()
    with torch.no_grad():
        if special == "zero":
            model.c.weight[1] = 0
        elif special == "all zero":
            model.c.weight.zero_()
        elif special in ("twins", "opposite"):
            model.c.weight[2] = model.c.weight[0] * (1 if special == "twins" else -1)
    found = by_unit(*scored(criterion, model))
    for units in SETS:
        filters = [weights(model, unit) for unit in units]
        norms = [norm(own) for own in filters]
        for unit, wanted in zip(units, hybrid(filters, isinstance(criterion, WHC)), strict=True):
            # Each 1 - |cos| is rounded by some units for each of its products; norms weigh it.
            others = sum(norms) if isinstance(criterion, WHC) else len(norms)
            bound = 4 * (len(filters[0]) + 10) * UNIT * max(norms) * others
            assert abs(found[unit] - wanted) <= bound
            assert found[unit] >= 0


def test_kernel_groups_of_a_dsn_are_ranked_apart() -> None:
    model = sc.models.DSN(2, 3, nf=6, kernel_size=9, depth=2).double()
    scores, channels = scored(WHC(), model, 30)
    layer = channels.layers["blocks.0.conv"]
    dense = model.blocks[0].conv.dense_weight().tolist()
    assert len(model.blocks[0].conv.regions) == 3
    for (first, end), _ in model.blocks[0].conv.regions:
        filters = [[w for kernel in dense[row] for w in kernel] for row in range(first, end)]
        found = scores[layer.outputs[first:end]]
        for score, wanted in zip(found.tolist(), hybrid(filters, True), strict=True):
            assert score == pytest.approx(wanted, rel=1e-12)
        # Of each group as many fall.
        kept = sc.prune_filters(model, torch.zeros(1, 2, 30).double(), WHC(), ratio=0.5).report
        rows = next(x.kept for x in kept.layers if x.name == "blocks.0.conv")
        assert sum(first <= row < end for row in rows) == (end - first) - (end - first) // 2


def parts(model: nn.Module) -> Iterator[tuple[int, str, list[tuple[str, Any]]]]:
    """Of each unit and each of its components: the entries of parameters that belong to it."""
    for unit, (outputs, inputs) in enumerate(UNITS):
        for name, rows in outputs.items():
            layer: Any = model.get_submodule(name)
            entries: list[tuple[str, Any]] = []
            for row in rows:
                if name == "b":
                    positions = layer.pattern.positions().tolist()
                    own = [i for i, position in enumerate(positions) if position // 12 == row]
                    entries += [("b.values", i) for i in own]
                else:
                    entries.append((f"{name}.weight", row))
                if layer.bias is not None:
                    entries.append((f"{name}.bias", row))
            yield unit, f"{name} out", entries
        for name, columns in inputs.items():
            layer = model.get_submodule(name)
            entries = []
            for column in columns:
                if name == "b":
                    positions = layer.pattern.positions().tolist()
                    own = [i for i, p in enumerate(positions) if p // 3 % 4 == column]
                    entries += [("b.values", i) for i in own]
                elif name == "g":  # channels 0, 1 belong to filters 0, 1, and 2, 3 to 2, 3
                    group, inside = divmod(column, 2)
                    entries.append(("g.weight", (slice(2 * group, 2 * group + 2), inside)))
                else:
                    taps = model.head.in_features // 7
                    columns_here = slice(column * taps, (column + 1) * taps)
                    entries.append(("head.weight", (slice(None), columns_here)))
            yield unit, f"{name} in", entries


@pytest.mark.parametrize("frozen", [(), ("a.weight", "norm.bias", "head.weight"), None])
@pytest.mark.parametrize("flat", [False, True])
def test_jacobian_component_by_component(flat: bool, frozen: tuple[str, ...] | None) -> None:
    model, (x, y) = Mixed(flat).eval(), data(10)
    wanted, magnitude = [0.0] * len(UNITS), [0.0] * len(UNITS)
    for first in range(0, 10, 4):
        twin = copy.deepcopy(model)
        F.nll_loss(twin(x[first : first + 4]), y[first : first + 4]).backward()
        named = dict(twin.named_parameters())
        for unit, _, entries in parts(twin):
            products = [
                (named[name].grad[where] * named[name].detach()[where]).flatten().tolist()
                for name, where in entries
            ]
            flatly = [product for part in products for product in part]
            wanted[unit] += math.fsum(flatly) ** 2
            magnitude[unit] += norm(flatly, 1) ** 2
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen is not None and name not in frozen)
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 10, 4)]
    found = by_unit(*scored(Jacobian(batches), model))
    for unit, score in enumerate(found):
        assert wanted[unit] > 0
        # Gradients themselves are rounded, in other orders in other threads.
        assert abs(score - wanted[unit]) <= 1000 * UNIT * magnitude[unit]
    fewer = by_unit(*scored(Jacobian(batches, batches=2), model))
    assert all(a < b for a, b in zip(fewer, found, strict=True))


def test_jacobian_takes_batches_of_64_of_arrays_and_any_loss_and_integers() -> None:
    model, (x, y) = classifier(), data(100)
    batches = [(x[:64], y[:64]), (x[64:], y[64:])]
    loss = torch.nn.MultiMarginLoss()
    given, _ = scored(Jacobian(batches, loss), model)
    arrays, _ = scored(Jacobian((x.numpy(), y.numpy().astype("int16")), loss), model)
    assert torch.equal(given, arrays)
    assert not torch.equal(given, scored(Jacobian(batches), model)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_jacobian_of_log_probabilities_and_of_logits(dtype: torch.dtype) -> None:
    model, (x, y) = classifier().to(dtype), data(30)
    with torch.no_grad():  # rounded outputs of any size are log-probabilities still
        model[7].weight *= 1e3
        sc.prune_filters(model, x.to(dtype), Jacobian((x, y)), ratio=0.5)
    logits = model[:-1].double()
    channels = trace(logits, (x,))
    assert torch.allclose(
        Jacobian((x, y), F.cross_entropy).scores(logits, channels),
        Jacobian((x, y)).scores(model.double(), channels),
    )


def test_jacobian_of_sparse_layers_is_that_of_dense_ones() -> None:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return (out * torch.tensor([1.0, -2.0, 3.0])).sum()

    grouped = 0
    for seed in range(40):
        network = RandomNetwork(seed)  # of whole numbers: exact
        layers = [m for m in network.model.modules() if isinstance(m, sc.SparseConv1d)]
        if not layers or not trace(network.model, (network.example,)).n_units:
            continue
        criterion = Jacobian([(network.example, torch.zeros(2))], loss)
        found, wanted = (
            criterion.scores(model, trace(model, (network.example,)))
            for model in (network.model, sc.to_dense(network.model))
        )
        assert torch.equal(found, wanted)
        grouped += any(1 < layer.groups < layer.in_channels for layer in layers)
    assert grouped >= 5


def activations(model: Mixed, batches: list[Tensor]) -> list[float]:
    """Of each unit a_c / max a_c over its set, a_c = max over series of |F[b, c]|_2 / sqrt(T).

    F is what a layer is given. Of a unit with several channels F holds them all, one after another;
    where several layers read it, the largest share counts.
    """
    given: dict[str, list[Tensor]] = defaultdict(list)
    for name in {name for _, inputs in UNITS for name in inputs}:
        hook = lambda _, args, name=name: given[name].append(args[0])  # noqa: E731
        model.get_submodule(name).register_forward_pre_hook(hook)
    with torch.no_grad():
        for batch in batches:
            model(batch)

    def activation(name: str, columns: list[int]) -> float:
        length = 12 if name == "head" and model.flat else 1  # samples that have become channels
        rows = [range(c * length, (c + 1) * length) for c in columns]
        return max(
            norm(values) / math.sqrt(len(values))
            for batch in given[name]
            for series in batch
            for values in [[v for row in rows for i in row for v in series[i].flatten().tolist()]]
        )

    shares = [0.0] * len(UNITS)
    for units in SETS:
        for name in UNITS[units[0]][1]:
            a = {unit: activation(name, UNITS[unit][1][name]) for unit in units}
            for unit in units:
                shares[unit] = max(shares[unit], a[unit] / max(a.values()))
    return shares


@pytest.mark.parametrize("flat", [False, True])
def test_activations_of_dsp(flat: bool) -> None:
    model, (x, y) = Mixed(flat).eval(), data(10)
    wanted = activations(copy.deepcopy(model), [x])
    assert min(wanted) < 0.9
    forms = [x, (x, y), (x.numpy(),), [x[:3], x[3:]], [(x[:9], y[:9]), (x[9:], y[9:])],
             DataLoader(TensorDataset(x, y), 4)]  # fmt: skip
    for form in forms:
        found = by_unit(*scored(DSP(form), model))
        assert found == pytest.approx(wanted, rel=100 * UNIT)
    # What falls does so exactly at its share.
    share = sorted(wanted)[1]
    for eps, count in ((share * (1 + 1e-9), 2), (share * (1 - 1e-9), 1)):
        report = sc.prune_filters(model, x, DSP(x, eps)).report
        assert (report.scores > eps).sum() == len(UNITS) - count


class Beside(nn.Module):
    """Two layers, and the input, concatenated: of each other's scales they are independent."""

    def __init__(self, scale: float, other: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = scale
        self.a, self.c = nn.Conv1d(2, 6, 3, padding=1, bias=False), nn.Conv1d(2, 4, 1, bias=False)
        self.c.weight.data *= other
        self.b = nn.Conv1d(12, 3, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        found = self.b(torch.cat([x * self.scale, self.a(x), self.c(x)], dim=1))
        return found.mean(2).log_softmax(1)


@pytest.mark.parametrize(("scale", "other"), [(1000.0, 1.0), (1.0, 0.004), (1.0, 250.0)])
def test_dsp_compares_the_filters_of_a_layer_with_each_other(scale: float, other: float) -> None:
    model = Beside(scale, other)
    report = sc.prune_filters(model, x, DSP(x)).report
    assert [layer.filters for layer in report.layers] == [(6, 6), (4, 4), (3, 3)]
    model.a.weight.data[2] *= 1e-4
    model.c.weight.data[1] *= 1e-4
    report = sc.prune_filters(model, x, DSP(x)).report
    assert [layer.kept for layer in report.layers[:2]] == [(0, 1, 3, 4, 5), (0, 2, 3)]


def test_the_default_of_dsp_is_1_percent() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 1, bias=False), nn.Conv1d(4, 2, 1)).double()
    model[0].weight.data.copy_(torch.tensor([1, 0.011, 0.009, 0])[:, None, None])
    report = sc.prune_filters(model, x[:, :1], DSP(x[:, :1])).report
    assert report.layers[0].kept == (0, 1)


class Codes(nn.Module):
    """Of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.inner, self.head = nn.Conv1d(3, 6, 3), nn.Conv1d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.embedding(x).mT).relu()).mean(2).log_softmax(1)


@pytest.mark.parametrize("make", [Jacobian, lambda data: DSP(data[0])], ids=["Jacobian", "DSP"])
def test_series_of_integers(make: Callable[[Any], Criterion]) -> None:
    model, codes = Codes(), torch.arange(40).view(4, 10) % 5
    small, report = sc.prune_filters(model, codes, make((codes, torch.arange(4) % 2)),
                                     ratio=None if make is not Jacobian else 0.5)  # fmt: skip
    assert small(codes).shape == (4, 2)
    assert report.layers[0].name == "inner"
    # Whole numbers are samples as others are where there is nothing to look up.
    series = torch.arange(48).view(4, 1, 12)
    plain = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Conv1d(4, 2, 3), nn.Flatten(), nn.LogSoftmax(1))
    sc.prune_filters(plain, series.float(), Jacobian((series, torch.arange(4) % 2)), ratio=0.5)


@pytest.mark.parametrize(
    "make",
    [Jacobian, DSP, lambda given: Evolutionary(given, population=2, generations=1)],
    ids=["Jacobian", "DSP", "Evolutionary"],
)
def test_linear_layers_at_each_sample(make: Callable[[Any], Criterion]) -> None:
    model, given = ChannelsLast().eval(), data()
    scores, channels = scored(make(given), model)
    assert (scores >= 0).all()
    if isinstance(make(given), DSP):
        seen = model.conv(given[0]).relu().detach().square().mean(2).amax(0).sqrt()
        assert torch.allclose(scores[channels.layers["conv"].outputs], seen / seen.max())
