"""``sc.prune_filters``: how many filters go, what it refuses, and what follows the filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from model_state import everything
from networks import MODELS, ChannelsLast, Drawn, Mixed, classifier, data
from torch import Tensor, nn

import sparseconv as sc
from sparseconv.pruning import DSP, WHC, Criterion, Jacobian, Magnitude
from sparseconv.pruning.channels import Channels
from sparseconv.pruning.filters import keep_filters
from sparseconv.pruning.tracing import trace

X, Y = data()


@pytest.mark.parametrize("equivalent", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_ratio_0_changes_no_bit(name: str, equivalent: bool) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(2, 2, 40)
    state = torch.get_rng_state()
    same, report = sc.prune_filters(model, x, WHC(), ratio=0, equivalent=equivalent)
    assert torch.equal(torch.get_rng_state(), state)
    assert same.training
    assert report.parameters[0] == report.parameters[1]
    for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr() or not a.numel()
    assert torch.equal(same.eval()(x), model.eval()(x))
    assert torch.equal(report.merge()(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_the_same_filters_of_a_fresh_model(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(2, 2, 40)
    pruned, report = sc.prune_filters(model, x, Drawn(0, False), ratio=0.5)
    fresh = keep_filters(MODELS[name](), x, {layer.name: layer.kept for layer in report.layers})
    fresh.load_state_dict(pruned.state_dict())
    assert torch.equal(fresh.eval()(x), pruned.eval()(x))
    assert torch.equal(keep_filters(model, x, {}).eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"no": [0]}, "filters names 'no', which is none of"),
        ({"a": []}, "filters of 'a' must be some of 0 to 3, but are"),
        ({"a": [4]}, "some of 0 to 3"),
        ({"head": [0]}, r"only \[0, 1, 2\] of them can stay"),
        ({"a": [0]}, r"only \[\] of them can stay"),  # groups tie 0 to 2 and 1 to 3
        ({"a": [0, 2], "b": [1, 3]}, r"only \[\] of them can stay"),
    ],
)
def test_filters_that_cannot_be_kept(filters: dict[str, list[int]], message: str) -> None:
    model = Mixed()
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        keep_filters(model, X, filters)
    assert everything(model) == before
    assert keep_filters(model, X, {"a": [0, 2], "b": [0, 2]}).g.weight.shape == (4, 1, 3)


class Halves(nn.Module):
    """Two layers read every other channel of a third."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv1d(2, 8, 3)
        self.b, self.c = nn.Conv1d(4, 3, 1), nn.Conv1d(4, 3, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu()
        return self.b(hidden[:, ::2]) + self.c(hidden[:, 1::2])


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([0, 1, 3, 4], "the pruned model computes something else: .*; name .* in ignore"),
        ([0, 1, 2, 4, 6], "the pruned model does not run .*; name .* in ignore"),
    ],
)
def test_filters_whose_removal_moves_others(kept: list[int], message: str) -> None:
    model = Halves()
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        keep_filters(model, X, {"a": kept})
    assert everything(model) == before
    assert keep_filters(model, X, {"a": [0, 1, 4, 5]})(X).shape == (10, 3, 10)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"a": [True, False, True, False]}, r"filters of 'a' must be .*of a mask: .*but got True"),
        ({"a": torch.tensor([True, False, True, False])}, "must be a list of ints.* but got True"),
        ({"a": torch.tensor([0.0, 2.0])}, "must be a list of ints.* but got 0.0"),
        ({"a": torch.tensor(2)}, r"must be a list of ints.* but got tensor\(2\)"),
        ({"a": 3}, "must be a list of ints.* but got 3"),
        ({"a": None}, "must be a list of ints.* but got None"),
        ({"a": {"0": 3}}, "must be a list of ints.* but got '0'"),
        ([1], r"filters must map names of layers to .* but got \[1\]"),
        (None, "filters must map names of layers to .* but got None"),
    ],
)
def test_filters_that_are_no_numbers(filters: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        keep_filters(Mixed(), X, filters)


@pytest.mark.parametrize("form", [torch.tensor, np.array, iter, set])
def test_forms_of_numbers(form: Callable[[list[int]], Any]) -> None:
    assert keep_filters(Mixed(), X, {"a": form([0, 2])}).a.weight.shape == (2, 2, 3)
    with pytest.raises(ValueError, match=r"some of 0 to 3, but are \[0, 4\]"):
        keep_filters(Mixed(), X, {"a": form([0, 4])})


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
    report = sc.prune_filters(classifier(100), X, WHC(), ratio=0.29).report
    assert report.layers[0].filters == (100, 71)


@pytest.mark.parametrize("steps", [2, 4])
def test_steps_towards_target_macs_are_equal(steps: int) -> None:
    watched, model = Watched(), classifier(64)
    full = trace(model, (X,)).macs()
    sc.prune_filters(model, X, watched, target_macs=full // 5, steps=steps)
    for step, read in enumerate(watched.read):
        # What one filter takes is less than 2 % of the whole, but for those of the small layers.
        assert read / 64 == pytest.approx(1 - 0.8 * step / steps, abs=0.05)


def test_steps() -> None:
    watched, model = Watched(), classifier(8)
    pruned, report = sc.prune_filters(model, X, watched, ratio=0.75, steps=3)
    assert watched.asked == [[8, 6], [6, 5], [4, 3]]
    assert watched.read == [8, 6, 4]
    assert [layer.filters for layer in report.layers] == [(8, 2), (8, 2), (6, 2), (3, 3)]
    # Sizes of filters do not change on the way, but what a linear layer reads does.
    once = sc.prune_filters(model, X, Magnitude(), ratio=0.75).report
    assert once.layers[0].kept == report.layers[0].kept
    assert pruned[5].weight.shape == (2, 2)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("name", ["ResNet", "InceptionTime", "DSN"])
def test_target_macs_with_no_filter_more_than_needed(
    name: str, everywhere: bool, steps: int
) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.zeros(1, 2, 40)
    channels = trace(model, (x,))
    scores = Drawn(0, everywhere).scores(model, channels)
    full = channels.macs()
    for share in (1.5, 0.999, 0.7, 0.3):
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


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "got neither"),
    ({"ratio": 0.5, "target_macs": 5}, "got both"),
    *(({"ratio": ratio}, r"ratio must lie in \[0, 1\)") for ratio in (1, -1, torch.nan, torch.inf)),
    ({"ratio": "half"}, "ratio must be a number"),
    ({"target_macs": 0}, "target_macs"),
    ({"target_macs": 0.5}, "target_macs must be an int"),
    ({"target_macs": 3}, "target_macs=3 is out of reach: .* 76 multiply-adds are left, of 642"),
    ({"target_macs": 3, "steps": 9}, "target_macs=3 is out of reach"),
    ({"ratio": 0.5, "steps": 0}, "steps must be at least 1, but got 0"),
    ({"ratio": 0.5, "steps": 1.5}, r"steps must be an int, but got 1\.5"),
    ({"ratio": 0.5, "steps": (2,)}, r"steps must be an int, but got \(2,\)"),
    ({"ratio": 0.5, "equivalent": "no"}, "equivalent must be True or False, but got 'no'"),
    ({"ratio": True}, "ratio must be a number"),
    ({"ratio": 0.5, "ignore": ["0", "no"]}, "ignore names 'no', but the model has no such module"),
    ({"ratio": 0.5, "ignore": ["0", "5"]}, "no filters that can be removed"),
    ({"ratio": 0.5, "criterion": "WHC"}, "criterion must be one of"),
    ({"ratio": 0.5, "criterion": WHC}, "criterion must be one of"),
    ({"ratio": 0.5, "criterion": DSP(X)}, "finds out how many filters go"),
    ({"target_macs": 99, "criterion": DSP(X)}, "finds out how many filters go"),
    ({"ratio": 0.5, "example_input": X.numpy()}, "example_input must be a tensor"),
    ({"ratio": 0.5, "example_input": X[:0]}, "must hold a series"),
    ({"ratio": 0.5, "example_input": X[:, :1]}, "cannot take example_input"),
    ({"ratio": 0.5, "example_input": X.float()}, "cannot take example_input"),
    ({"ratio": 0.5, "example_input": (X, X)}, "cannot take example_input"),
    ({"ratio": 0.5, "model": "resnet"}, r"model must be an nn\.Module"),
    ({"ratio": 0.5, "model": nn.ReLU()}, "no filters that can be removed"),
    ({"ratio": 0.5, "optimizer": "SGD"}, "optimizer must be a torch"),
    ({"ratio": 0.5, "optimizer": torch.optim.SGD([torch.zeros(1)])}, "not the model's"),
    (
        {"ratio": 0.5, "optimizer": torch.optim.SGD([torch.zeros(1)]), "equivalent": True},
        "build a new optimizer",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: str(value)[:60])
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    model = classifier()
    before = everything(model)
    given = {"model": model, "example_input": X, "criterion": WHC(), **arguments}
    with pytest.raises((TypeError, ValueError), match=message):
        sc.prune_filters(**given)
    assert everything(model) == before


class Given(Criterion):
    """Scores that somebody has computed."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        return self.found


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.arange(14), r"Given\(\) must give a tensor of floats .* gave torch.int64"),
        ([0.5] * 14, "must give a tensor of floats as scores, but gave list"),
        (None, "but gave NoneType"),
        (torch.rand(13), r"a score for each of 14 units \(channels.n_units\), but gave \(13,\)"),
        (torch.rand(14, 1), r"but gave \(14, 1\)"),
        (torch.full((14,), torch.nan), r"Given\(\) gave scores that are not finite"),
    ],
)
def test_scores_that_a_criterion_must_not_give(scores: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        sc.prune_filters(classifier(), X, Given(scores), ratio=0.5)


@pytest.mark.parametrize("criterion", [WHC(), DSP(X, 0.9), Jacobian((X, Y))], ids=str)
def test_the_model_and_all_generators_are_left_alone(criterion: Criterion) -> None:
    model = nn.Sequential(classifier(), nn.Dropout(), Mixed())[:1].train()
    model[0][1].eval().requires_grad_(False)
    calls: list[int] = []
    model[0][0].register_forward_hook(lambda *_: calls.append(1))
    model(X).sum().backward()
    before = everything(model)
    limits = {} if criterion.threshold is not None else {"ratio": 0.5}
    pruned, _ = sc.prune_filters(model, X, criterion, **limits)
    assert everything(model) == before
    modes = [module.training for module in pruned.modules()]
    assert modes == [module.training for module in model.modules()]
    asks = [parameter.requires_grad for parameter in pruned.parameters()]
    assert asks == [parameter.requires_grad for parameter in model.parameters()]
    calls.clear()
    pruned(X)
    assert calls == [1]  # a hook stays with its layer


def test_hooks_stay_with_sparse_layers_and_merged_ones() -> None:
    seen: list[int] = []
    for model, equivalent in ((Mixed(), False), (ChannelsLast(), True)):
        for module in (layer for layer in model.modules() if not list(layer.children())):
            # Forward hooks keep a layer from being merged.
            kind = "full_backward" if equivalent else "forward"
            getattr(module, f"register_{kind}_hook")(lambda *_: seen.append(1))
        model(X).sum().backward()
        wanted = len(seen)
        seen.clear()
        report = sc.prune_filters(model, X, WHC(), ratio=0.5, equivalent=equivalent).report
        pruned = report.merge() if equivalent else report.after
        seen.clear()
        pruned(X).sum().backward()
        assert len(seen) == wanted > 0
        seen.clear()


def test_what_was_pruned_in_inference_mode_can_be_trained() -> None:
    model = classifier()
    with torch.inference_mode():
        pruned, _ = sc.prune_filters(model, X, Jacobian((X, Y)), ratio=0.5)
    pruned(X).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_models_that_are_compiled_in_place() -> None:
    model = classifier()
    model.compile(backend="eager")
    model[0].compile(backend="eager")
    pruned, _ = sc.prune_filters(model, X, WHC(), ratio=0.5)
    plain, _ = sc.prune_filters(classifier(), X, WHC(), ratio=0.5)
    assert torch.equal(pruned.eval()(X), plain.eval()(X))
