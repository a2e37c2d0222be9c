"""``sc.prune_filters``: how many filters go, and what stays as it was."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("name", "equivalent"), [*((name, False) for name in MODELS), ("LITE", True)]
)
def test_ratio_0_changes_no_bit(name: str, equivalent: bool) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(2, 2, 40)
    same, report = sc.prune_filters(model, x, WHC(), fraction=0, equivalent=equivalent)
    assert same.training
    assert report.parameters[0] == report.parameters[1]
    for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr() or not a.numel()
    merged = report.merge()
    assert torch.equal(merged.eval()(x), model.eval()(x))
    assert not {id(p) for p in same.parameters()} & {id(p) for p in merged.parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_filters_of_a_fresh_model(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(2, 2, 40)
    pruned, report = sc.prune_filters(model, x, Drawn(0, False), fraction=0.5)
    fresh = keep_filters(MODELS[name](), x, {layer.name: layer.kept for layer in report.layers})
    fresh.load_state_dict(pruned.state_dict())
    assert torch.equal(fresh.eval()(x), pruned.eval()(x))


def test_forms_of_numbers() -> None:
    for form in (list, torch.tensor, np.array, iter, set):
        small = keep_filters(Mixed(), X, {"a": form([0, 2]), "b": form([0, 2])})
        assert small.a.weight.shape == (2, 2, 3)
        assert small.g.weight.shape == (4, 1, 3)


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
@pytest.mark.parametrize(("name", "everywhere"), [("InceptionTime", False), ("DSN", True)])
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


def test_layers_of_merged_pairs_keep_their_hooks() -> None:
    model, seen = ChannelsLast(), []
    for module in (layer for layer in model.modules() if not list(layer.children())):
        module.register_full_backward_hook(lambda *_: seen.append(1))
    merged = sc.prune_filters(model, X, WHC(), fraction=0.5, equivalent=True).report.merge()
    seen.clear()
    merged(X).sum().backward()
    assert len(seen) == 3


def test_models_that_are_compiled_in_place() -> None:
    model = classifier()
    model.compile(backend="eager")
    model[0].compile(backend="eager")
    pruned, _ = sc.prune_filters(model, X, WHC(), fraction=0.5)
    plain, _ = sc.prune_filters(classifier(), X, WHC(), fraction=0.5)
    assert torch.equal(pruned.eval()(X), plain.eval()(X))
