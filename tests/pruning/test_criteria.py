"""Scores of filters, and the loss of DSP, against loops over the formulas."""

from __future__ import annotations

import copy
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_state import everything
from pruning_networks import SETS, UNITS, ChannelsLast, Drawn, Mixed, classifier, data
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sparseconv as sc
from sparseconv.pruning import DSP, HC, WHC, Criterion, Evolutionary, Jacobian, Magnitude
from sparseconv.pruning.sparsity_loss import InstanceSparsity, Stage, published_stages
from sparseconv.pruning.tracing import trace
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

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


@pytest.mark.parametrize("special", [None, 0.0, 1.0, -1.0])
@pytest.mark.parametrize("criterion", [HC(), WHC()], ids=str)
def test_hybrid_criteria_by_their_definition(criterion: Criterion, special: float | None) -> None:
    model = Mixed()
    if special is not None:  # a filter that is zero, a twin or the opposite of another
        model.c.weight.data[2] = model.c.weight.data[0] * special
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


Flows = dict[str, list[tuple[Tensor, Tensor]]]


def flows(model: nn.Module, x: Tensor) -> tuple[Tensor, Flows]:
    """The output, and of each layer inputs and outputs, ``(N, C, ...)``, which keep gradients."""
    found: Flows = defaultdict(list)
    given: dict[str, Tensor] = {}

    def before(name: str, _: nn.Module, args: Any) -> Tensor:
        given[name] = args[0].clone()  # other layers may read it too
        given[name].requires_grad_().retain_grad()
        return given[name]

    def after(name: str, _: nn.Module, args: Any, y: Tensor) -> None:
        y.retain_grad()
        found[name].append((given[name], y))

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(partial(before, name))
            module.register_forward_hook(partial(after, name))
    return model(x), found


def felt(channels: Any, loss: Tensor, found: Flows) -> tuple[Tensor, Tensor]:
    """Each unit's sum of squares for one batch; and the same of all products' sizes.

    What flows, times its gradient, is the sum of the weights that make it (or that read it), each
    times its own gradient: the derivative by one factor for them all.
    """
    loss.backward()
    wanted, sizes = (torch.zeros(channels.n_units, dtype=torch.float64) for _ in range(2))
    for name, layer in channels.layers.items():
        for side, units in enumerate((layer.inputs, layer.outputs)):
            products = [f[side].detach() * f[side].grad for f in found[name]]
            of_channels = torch.cat([p.transpose(0, 1).flatten(1) for p in products], 1)
            for unit in units[units >= 0].unique() if side or layer.reads else ():
                own = of_channels[units == unit]
                wanted[unit] += own.sum().square()
                sizes[unit] += own.abs().sum().square()
    return wanted, sizes


@pytest.mark.parametrize("frozen", [(), ("a.weight", "norm.bias", "head.weight"), None])
@pytest.mark.parametrize("flat", [False, True])
def test_jacobian_by_what_flows(flat: bool, frozen: tuple[str, ...] | None) -> None:
    model, (x, y) = Mixed(flat).eval(), data(10)
    channels = trace(model, (x,))
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 10, 4)]
    wanted, sizes = torch.zeros(2, channels.n_units, dtype=torch.float64)
    for series, classes in batches:
        twin = copy.deepcopy(model)
        out, found = flows(twin, series)
        one, size = felt(channels, F.nll_loss(out, classes), found)
        wanted += one
        sizes += size
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen is not None and name not in frozen)
    scores, _ = scored(Jacobian(batches), model)
    assert (wanted > 0).all()
    # Gradients themselves are rounded, in other orders in other threads.
    assert ((scores - wanted).abs() <= 1000 * UNIT * sizes).all()
    assert (scored(Jacobian(batches, batches=2), model)[0] < scores).all()


def test_jacobian_takes_arrays_in_batches() -> None:
    model, (x, y) = classifier(), data(100)
    given, _ = scored(Jacobian([(x[:64], y[:64]), (x[64:], y[64:])]), model)
    arrays, _ = scored(Jacobian((x.numpy(), y.numpy().astype("int16"))), model)
    assert torch.equal(given, arrays)


def shares(model: Mixed, x: Tensor) -> list[float]:
    """Of each unit a_c / max a_c over its set, a_c = max over series of |F[b, c]|_2 / sqrt(T).

    F is what a layer is given. Of a unit with several channels F holds them all, one after another;
    where several layers read it, the largest share counts.
    """
    _, found = flows(copy.deepcopy(model), x)
    result = [0.0] * len(UNITS)
    for units in SETS:
        for name in UNITS[units[0]][1]:
            # Samples may have become channels.
            series = found[name][0][0].detach().reshape(len(x), 7 if name == "head" else 4, -1)
            a = {
                unit: max(norm(F) / math.sqrt(len(F)) for F in own.flatten(1).tolist())
                for unit in units
                for own in [series[:, UNITS[unit][1][name]]]
            }
            for unit in units:
                result[unit] = max(result[unit], a[unit] / max(a.values()))
    return result


@pytest.mark.parametrize("flat", [False, True])
def test_activations_of_dsp(flat: bool) -> None:
    model, (x, y) = Mixed(flat).eval(), data(10)
    wanted = shares(model, x)
    assert min(wanted) < 0.9
    forms = [x, (x, y), (x.numpy(),), [x[:3], x[3:]], [*x], (*x.numpy(),),
             [(x[:9], y[:9]), (x[9:], y[9:])], DataLoader(TensorDataset(x, y), 4)]  # fmt: skip
    for form in forms:
        assert by_unit(*scored(DSP(form), model)) == pytest.approx(wanted, rel=100 * UNIT)
    # What falls does so exactly at its share.
    share = sorted(wanted)[1]
    for eps, count in ((share * (1 + 1e-9), 2), (share * (1 - 1e-9), 1)):
        report = sc.prune_filters(model, x, DSP(x, eps=eps)).report
        assert (report.scores > eps).sum() == len(UNITS) - count


def test_the_default_of_dsp_is_1_percent() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 1, bias=False), nn.Conv1d(4, 2, 1)).double()
    model[0].weight.data.copy_(torch.tensor([1, 0.011, 0.009, 0])[:, None, None])
    report = sc.prune_filters(model, x[:, :1], DSP(x[:, :1])).report
    assert report.layers[0].kept == (0, 1)


def test_linear_layers_at_each_sample() -> None:
    model, given = ChannelsLast().eval(), data()
    scores, channels = scored(DSP(given), model)
    seen = model.conv(given[0]).relu().detach().square().mean(2).amax(0).sqrt()
    assert torch.allclose(scores[channels.layers["conv"].outputs], seen / seen.max())
    for criterion in (Jacobian(given), Evolutionary(given, population=2, generations=1)):
        assert (scored(criterion, model)[0] >= 0).all()


@pytest.mark.parametrize("criterion", [WHC(), Jacobian((x, y)), DSP(x)], ids=str)
def test_a_transposed_convolution_of_one_tap_is_a_convolution(criterion: Criterion) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(6, 3), nn.LogSoftmax(1),
    ).double()  # fmt: skip
    transposed = copy.deepcopy(plain)
    transposed[2] = nn.ConvTranspose1d(8, 6, 1).double()
    transposed[2].weight.data = plain[2].weight.data.transpose(0, 1)
    transposed[2].bias.data = plain[2].bias.data
    torch.testing.assert_close(*(scored(criterion, m)[0] for m in (plain, transposed)))


X, _ = data(90)
Y = torch.bucketize(X[:, 0].std(1), torch.tensor([0.5, 1.2]).double())  # classes by scale
SMALL = {"population": 8, "generations": 6}


def errors(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> float:
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) != y).double().mean())


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = classifier()
    train(model, X, Y, Recipe(epochs=40, lr=2e-2, batch_size=30), verbose=False)
    assert errors(model) < 0.3
    return model


def kept(model: nn.Module, **options: Any) -> list[tuple[int, ...]]:
    report = sc.prune_filters(model, X[:1], Evolutionary((X, Y), **{**SMALL, **options})).report
    return [layer.kept for layer in report.layers]


def test_the_seed_alone_decides(trained: nn.Module) -> None:
    before = everything(trained)
    first = kept(trained)
    assert everything(trained) == before
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    assert kept(trained) == first
    assert any(kept(trained, seed=seed) != first for seed in range(1, 6))


@pytest.mark.parametrize("tolerance", [0, 0.3])
def test_few_errors_and_fewer_weights(trained: nn.Module, tolerance: float) -> None:
    criterion = Evolutionary((X, Y), tolerance=tolerance, **SMALL)
    pruned, report = sc.prune_filters(trained, X[:1], criterion)
    assert errors(pruned) <= errors(trained) + tolerance + 1e-12
    assert set(report.scores.tolist()) == {0, 1}
    assert report.parameters[1] < report.parameters[0]


def test_so_many_cases_judge(trained: nn.Module) -> None:
    """Of batches the first, no more of which are drawn; of arrays those at equal distances."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield X[:15], Y[:15]
        yield X[15:30], Y[15:30]
        raise AssertionError("20 of these 30 were asked for")

    chosen = torch.linspace(0, 89, 20).round().long()
    for given, same in ((batches(), (X[:20], Y[:20])), ((X, Y), (X[chosen], Y[chosen]))):
        few = [
            sc.prune_filters(trained, X, Evolutionary(data, cases=20, **SMALL)).report
            for data in (given, same)
        ]
        assert few[0].layers == few[1].layers
        assert "other thresholds" not in str(few[0])


FIVE, _ = data(5)
SCALE = 0.25


def outputs_of(model: nn.Module, stages: list[str], x: Tensor) -> dict[str, Tensor]:
    """What modules compute in a pass of their own."""
    found: dict[str, Tensor] = {}
    for name in stages:
        hook = lambda _, __, y, name=name: found.update({name: y})  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    model(x)
    return found


def by_loops(output: Tensor, channels: int) -> float:
    total = []
    for series in output.tolist():
        total += [math.sqrt(math.fsum(v * v for v in channel)) for channel in series[:channels]]
    return math.fsum(total)


STAGES = [Stage("2", 3.0), Stage("0", 0.5, 5)]


def test_the_formula() -> None:
    model = classifier()
    found = outputs_of(copy.deepcopy(model), ["2", "0"], FIVE)
    wanted = SCALE * (3 * by_loops(found["2"], 8) + 0.5 * by_loops(found["0"], 5))
    with InstanceSparsity(model, STAGES, SCALE) as penalty:
        out = model(FIVE)
        loss = penalty()
    assert abs(loss.item() - wanted) <= (5 * 13 + 12 + 10) * UNIT * wanted
    assert out.shape == (5, 3)


def test_it_adds_up_passes_in_train_mode_and_leaves_no_trace() -> None:
    model = classifier()
    penalty = InstanceSparsity(model, ["0"])
    model(FIVE)
    with pytest.raises(RuntimeError, match="non-empty"):
        penalty()  # not inside of a with block
    with penalty:
        one = (model(FIVE), penalty())[1]
        model(FIVE)
        model(FIVE)
        assert penalty().item() == pytest.approx(2 * one.item(), rel=1e-12)
        with pytest.raises(RuntimeError, match="non-empty"):
            penalty()
        model.eval()(FIVE)
        with torch.no_grad():
            model.train()(FIVE)
        with pytest.raises(RuntimeError, match="non-empty"):
            penalty()
        model(FIVE)
    with penalty, pytest.raises(RuntimeError, match="non-empty"):
        penalty()  # of the block before nothing is left
    with pytest.raises(KeyError), penalty:
        raise KeyError
    assert not any(module._forward_hooks for module in model.modules())


def test_lite_counts_its_learned_filters() -> None:
    torch.manual_seed(0)
    model, x = sc.models.LITE(2, 3, nf=5).double(), FIVE
    model = sc.prune_filters(model, x, Drawn(0, False), fraction=0.4).model
    learned = 9
    assert sum(len(conv.weight) for conv in model.blocks[0][:-1]) == learned
    assert published_stages(model) == [
        ("blocks.2", 4.0, learned), ("blocks.6", 2.0, None), ("blocks.10", 1.0, None),
    ]  # fmt: skip


def test_inception_time_counts_each_module_after_its_addition() -> None:
    stages = published_stages(sc.models.InceptionTime(2, 3, nf=4))
    ends = (".body.0", ".body.1", "")
    assert [x.module for x in stages] == [f"blocks.{i}{end}" for i in range(2) for end in ends]
    assert all((stage.weight, stage.channels) == (1, None) for stage in stages)


def test_sums_of_small_types_are_not_rounded_away() -> None:
    model = nn.Conv1d(1, 257, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    with InstanceSparsity(model, [""], 1.0) as penalty:
        model(torch.ones(1, 1, 4).bfloat16())
        assert penalty().item() == 257 * 2
    assert torch.tensor(257.0 * 2).bfloat16().item() != 257 * 2
