"""``sc.prune_filters``: how many filters go, what stays as it was, and what the report counts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from model_state import everything
from pruning_networks import MODELS, Drawn, classifier, data, exact, silenced
from random_networks import RandomNetwork
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import sparseconv as sc
from sparseconv import DSTScheduler, SparseConv1d
from sparseconv.models.dense import hand_made_filters
from sparseconv.profiling.stopwatch import model_passes
from sparseconv.pruning import DSP, WHC, Criterion, Jacobian, Magnitude
from sparseconv.pruning.channels import Channels
from sparseconv.pruning.filters import keep_filters
from sparseconv.pruning.tracing import trace

X, Y = data()


class Watched(Criterion):
    """Counts what it is asked about, and how many filters a model still reads."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.read: list[int] = []

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        self.asked.append([len(group.units) for group in channels.sets])
        self.read.append(int((model[5].weight != 0).any(0).sum()))
        return Magnitude().scores(model, channels)


def test_a_share_that_rounding_puts_below_a_whole_number() -> None:
    assert int(0.29 * 100) == 28
    report = sc.prune_filters(classifier(100), X, WHC(), fraction=0.29).report
    assert report.layers[0].filters == (100, 71)


def test_steps() -> None:
    watched, model = Watched(), classifier(8)
    pruned, report = sc.prune_filters(model, X, watched, fraction=0.75, steps=3)
    assert watched.asked == [[8, 6], [6, 5], [4, 3]]
    assert watched.read == [8, 6, 4]
    assert [layer.filters for layer in report.layers] == [(8, 2), (8, 2), (6, 2), (3, 3)]
    # Sizes of filters do not change on the way, but what a linear layer reads does.
    once = sc.prune_filters(model, X, Magnitude(), fraction=0.75).report
    assert once.layers[0].kept == report.layers[0].kept
    assert pruned[5].weight.shape == (2, 2)
    towards = Watched()
    sc.prune_filters(model, X, towards, target_macs=report.macs.after, steps=3)
    whole, second, third = map(sum, towards.asked)
    assert whole > second > third


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("name", "everywhere"), [("tsai", False), ("DSN", True)])
def test_target_macs_with_no_filter_more_than_needed(
    name: str, everywhere: bool, steps: int
) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.zeros(1, 2, 40)
    channels = trace(model, (x,))
    scores = Drawn(0, everywhere).scores(model, channels)
    full = channels.macs()
    for share in (1.5, 0.999, 0.3):
        target = int(share * full)
        report = sc.prune_filters(
            model, x, Drawn(0, everywhere), target_macs=target, steps=steps
        ).report
        assert report.macs[1] <= target
        kept = torch.zeros(channels.n_units, dtype=torch.bool)
        for layer in report.layers:
            units = channels.layers[layer.name].outputs[list(layer.kept)]
            kept[units[units >= 0]] = True
        assert channels.macs(kept) == report.macs[1]
        # The next best one of all, or of each set, would be too much.
        for units in [torch.arange(len(kept))] if everywhere else [s.units for s in channels.sets]:
            gone = units[~kept[units]]
            kept[gone[scores[gone].argsort(descending=True)][:1]] = True
        assert kept.all() if share > 1 else channels.macs(kept) > target


@pytest.mark.parametrize("criterion", [WHC(), DSP(X, eps=0.9), Jacobian((X, Y))], ids=str)
def test_the_model_and_all_generators_are_left_alone(criterion: Criterion) -> None:
    model = nn.Sequential(classifier()).train()
    model[0][1].eval().requires_grad_(False)
    calls: list[int] = []
    model[0][0].register_forward_hook(lambda *_: calls.append(1))
    model(X).sum().backward()
    before = everything(model)
    limits = {} if criterion.threshold is not None else {"fraction": 0.5}
    with torch.inference_mode():
        pruned, _ = sc.prune_filters(model, X, criterion, **limits)
    assert everything(model) == before
    modes = [module.training for module in pruned.modules()]
    assert modes == [module.training for module in model.modules()]
    asks = [parameter.requires_grad for parameter in pruned.parameters()]
    assert asks == [parameter.requires_grad for parameter in model.parameters()]
    calls.clear()
    pruned(X).sum().backward()
    assert calls == [1]  # a hook stays with its layer


RNG = torch.Generator().manual_seed(0)
WHOLE = 50 * torch.randint(-2, 3, (3, 2, 50), generator=RNG).double()


def converted(model: nn.Module) -> nn.Module:
    names = [name for name, module in model.named_modules() if type(module) is nn.Conv1d]
    result = sc.convert(model, layers=names).model
    assert sum(isinstance(module, SparseConv1d) for module in result.modules()) >= len(names)
    return sc.to_dense(result)


WAYS: list[Callable[[Any], Any]] = [
    copy.deepcopy,
    converted,
    sc.optimize_for_inference,
    lambda model: sc.prune_filters(model, WHOLE, WHC(), fraction=0, equivalent=True).report.merge(),
    lambda model: torch.export.export(model, (WHOLE,)).module(),
]


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_same_outputs(name: str) -> None:
    torch.manual_seed(0)
    whole = exact(MODELS[name]())  # nothing is rounded before the logarithm
    model = sc.prune_filters(whole, WHOLE, Drawn(7, False), fraction=0.5).model
    expected = copy.deepcopy(model)(WHOLE)
    assert len(expected.unique()) > 3
    for way in WAYS[: None if name == "DSN" else -1]:
        assert torch.equal(way(model)(WHOLE), expected), way


def test_dynamic_sparse_training_of_a_pruned_dsn() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(9, 2, 40), torch.arange(9) % 3
    model, report = sc.prune_filters(sc.models.DSN(2, 3, nf=6), x, WHC(), fraction=0.5)
    cost = model.cost(40)
    assert (cost.params, cost.macs_executed) == (report.parameters[1], report.macs[1])
    regions = [layer.regions for layer in model.sparse_layers()]
    groups = tuple(sc.Region((3 * i, 3 * i + 3), (0, 13 * (i + 1))) for i in range(3))
    assert regions == [groups] * 4
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = DSTScheduler(model, optimizer, update_every=2, end_step=20, grow="gradient")
    patterns = [layer.pattern for layer in model.sparse_layers()]
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.nll_loss(model.train()(x), y).backward()
        optimizer.step()
        scheduler.step()
    assert [layer.regions for layer in model.sparse_layers()] == regions
    for layer, old in zip(model.sparse_layers(), patterns, strict=True):
        assert layer.pattern.nnz == old.nnz
        mask = layer.pattern.to_mask()
        for (first, end), (start, stop) in layer.regions:
            assert not mask[first:end, :, :start].any()
            assert not mask[first:end, :, stop:].any()
    assert [layer.pattern for layer in model.sparse_layers()] != patterns


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_the_modules_and_fresh_models_lose_the_same(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(3, 2, 40)
    pruned, report = sc.prune_filters(model, x, Drawn(0, False), fraction=0.5)
    fresh = keep_filters(MODELS[name](), x, {layer.name: layer.kept for layer in report.layers})
    fresh.load_state_dict(pruned.state_dict())
    assert torch.equal(fresh.eval()(x), pruned.eval()(x))
    for i, whole in enumerate((report.before, report.after)):
        assert report.parameters[i] == sum(p.numel() for p in whole.parameters())
        assert report.parameters[i] == sum(layer.parameters[i] for layer in report.layers)
        # LITE's hand-made filters are functions on buffers, of each input channel.
        taps = sum(filter.shape[2] for filter in hand_made_filters())
        others = 40 * 2 * taps if name == "LITE" else 0
        assert report.macs[i] == others + sum(layer.macs[i] for layer in report.layers)
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            whole.eval()(x)
        # torch pads an even kernel, and counts as if it computed more samples.
        of_torch = pytest.approx(report.macs[i], rel=0.05)
        assert name in ("DSN", "OSCNN") or flops.get_total_flops() / 2 / len(x) == of_torch
        for layer in report.layers:
            module: Any = whole.get_submodule(layer.name)
            assert layer.kind == type(module).__name__
            assert layer.parameters[i] == sum(p.numel() for p in module.parameters())
            sizes = {"Linear": "out_features", "BatchNorm1d": "num_features"}
            assert layer.filters[i] == getattr(module, sizes.get(layer.kind, "out_channels"))
    # Half of each branch; what the input or the output fixes, and hand-made filters, stay.
    fixed = {"LITE": 17}.get(name, 0)
    for layer in report.layers:
        before, after = layer.filters
        assert before <= 3 or after - fixed <= before / 2 + 3
        assert len(set(layer.kept)) == after
        assert set(layer.kept) <= set(range(before))


def test_copies_are_timed_with_compressors_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[torch.nn.Module] = []

    def watched(model: torch.nn.Module, *given: Any) -> Any:
        timed.append(model)
        return model_passes(model, *given)

    monkeypatch.setattr("sparseconv.pruning.report.model_passes", watched)
    report = sc.prune_filters(classifier(), X, WHC(), fraction=0.5, equivalent=True).report
    report.measure(rounds=6, least_seconds=1e-6)
    assert not {report.before, report.after} & {*timed}
    assert [sum(p.numel() for p in model.parameters()) for model in timed] == [*report.parameters]


def test_the_curve_of_dsp() -> None:
    model = classifier(16)
    report = sc.prune_filters(model, X, DSP(X, eps=0.3)).report
    (least, first), *_, (most, last) = report.curve()
    assert (least, most, last) == (pytest.approx(1e-6), 1, 2)  # of each layer one
    assert f"other thresholds: {first} at 1e-06, " in str(report)
    assert f", {last} at 1\n" in str(report) + "\n"
    for eps in (0.0, 0.1, 0.3, 0.7):
        kept = sc.prune_filters(model, X, DSP(X, eps=eps)).report.layers
        convolution, linear = (kept[i].filters[1] for i in (0, 2))
        assert report.curve(torch.tensor([eps])) == [(pytest.approx(eps), convolution + linear)]  # type: ignore[arg-type]
    report = sc.prune_filters(classifier(), X, WHC(), fraction=0.5).report
    assert report.curve([-1.0]) == [(-1.0, len(report.scores))]
    assert "thresholds" not in str(report)


def test_the_curve_of_dsp_in_steps() -> None:
    model, x = sc.models.ResNet(1, 2, nf=4), torch.randn(4, 1, 50)
    once, often = (sc.prune_filters(model, x, DSP(x, eps=0.5), steps=n).report for n in (1, 3))
    low = [0.0, 1e-3]
    assert often.curve(low) == once.curve(low)  # those that fell first would be kept at these
    assert often.curve([0.5])[0][1] < once.curve([0.5])[0][1]  # more fell in the later steps


def optimizers(model: nn.Module) -> Iterator[torch.optim.Optimizer]:
    first, *others = [p for p in model.parameters() if p.requires_grad]
    groups: Any = [{"params": others}, {"params": [first], "lr": 0.5}]
    yield torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=0.1)
    yield torch.optim.Adam(model.parameters(), torch.tensor(0.1), amsgrad=True)
    yield torch.optim.AdamW(groups, 0.1)
    yield torch.optim.RMSprop(groups, 0.1, momentum=0.5, centered=True)
    yield torch.optim.Adagrad(groups, 0.1)


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("seed", [0, 5])
def test_an_optimizer_goes_on_as_if_its_filters_were_silent(seed: int, which: int) -> None:
    network = RandomNetwork(seed)
    model, x, drawn = network.model, network.example, Drawn(seed, False)
    next(model.parameters()).requires_grad_(False)
    optimizer = list(optimizers(model))[which]
    start = copy.deepcopy(model.state_dict())

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        (model(x) * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
        optimizer.step()

    step(model, optimizer)
    model.load_state_dict(start)  # whole numbers again: gradients are exact
    # A network of the parameters' positions, pruned alike, tells where each entry comes from.
    marked = copy.deepcopy(model)
    for parameter in marked.parameters():
        parameter.data = torch.arange(parameter.numel()).view_as(parameter).double()
    positions = sc.prune_filters(marked, x, drawn, fraction=0.5).model
    pruned, report = sc.prune_filters(model, x, drawn, fraction=0.5, optimizer=optimizer)
    assert report.parameters[1] < report.parameters[0]
    both = [x for each in (optimizer, report.optimizer) for x in tree_leaves({**each.state})]
    places = [x.data_ptr() for x in both if isinstance(x, torch.Tensor)]
    assert len(set(places)) == len(places)  # no moment is in both

    memo: dict[int, Any] = {}
    whole = silenced(model, report, memo)
    followed = copy.deepcopy(optimizer, memo)
    step(whole, followed)
    assert type(report.optimizer) is type(optimizer)
    step(pruned, report.optimizer)
    for old, new, where in zip(
        whole.parameters(), pruned.parameters(), positions.parameters(), strict=True
    ):
        assert torch.equal(new, old.flatten()[where.long()])
        assert new.requires_grad == old.requires_grad
        for key, value in followed.state.get(old, {}).items():
            wanted = value.flatten()[where.long()] if value.shape == old.shape else value
            assert torch.equal(report.optimizer.state[new][key], wanted)
    for old_group, group in zip(optimizer.param_groups, report.optimizer.param_groups, strict=True):
        assert {**old_group, "params": None} == {**group, "params": None}
        if isinstance(group["lr"], torch.Tensor):
            assert group["lr"] is not old_group["lr"]


class Own(torch.optim.SGD):
    """Has an attribute that torch does not pickle, and moments in a list."""

    scale = 1.0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("moments", [p.detach().clone(), {"name": "first"}])
            p.data -= self.scale * self.state[p]["moments"][0]


def test_what_an_optimizer_has_of_its_own() -> None:
    model = classifier()
    optimizer = Own(model.parameters())
    optimizer.scale = 3.0
    optimizer.step()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # replaces optimizer.step
    pruned, report = sc.prune_filters(model, X, WHC(), fraction=0.5, optimizer=optimizer)
    state, first = copy.deepcopy(model.state_dict()), pruned[0].weight
    moments = report.optimizer.state[first]["moments"]
    whole = optimizer.state[model[0].weight]["moments"][0]
    assert torch.equal(moments[0], whole[list(report.layers[0].kept)])
    assert moments[1] == {"name": "first"}
    before = first.detach().clone()
    report.optimizer.step()
    assert torch.equal(first, before - 3.0 * moments[0])
    assert all(torch.equal(a, state[key]) for key, a in model.state_dict().items())
