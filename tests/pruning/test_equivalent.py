"""Compressors and decompressors: nothing at first, something while training, gone after merging."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pruning_networks import ChannelsLast, Drawn, Mixed, classifier, data, silenced
from random_networks import RandomNetwork
from torch import Tensor, nn

import sparseconv as sc
from sparseconv.pruning import WHC
from sparseconv.pruning.equivalent import EquivalentLayer, Mix, merge

X, Y = data()


def flat() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(60, 4), nn.Tanh(), nn.Linear(4, 3)
    ).double()


class Branches(nn.Module):
    """A concatenation and a sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.short, self.long = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(2, 6, 5, padding=2)
        self.norm = nn.BatchNorm1d(10)
        self.body = nn.Conv1d(10, 10, 3, padding=1, padding_mode="circular", bias=False)
        self.head = nn.Conv1d(10, 3, 3, dilation=2, stride=2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        joined = self.norm(torch.cat([self.short(x), self.long(x)], dim=1)).relu()
        return self.head((joined + self.body(joined)).tanh()).mean(2).log_softmax(1)


NETWORKS = {
    "classifier": classifier,
    "flat": flat,
    "branches": Branches,
    "channels last": ChannelsLast,
    "LITE": lambda: sc.models.LITE(2, 3, nf=4).double(),
}


def move(model: nn.Module) -> None:
    """What training does to pairs, but far."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, Mix):
            nn.init.normal_(module.moved)


@torch.no_grad()
def check_merged(pairs: nn.Module, merged: nn.Module) -> None:
    """Both compute the same, except for rounding, and only what is mixed has moved."""
    assert not any(isinstance(m, EquivalentLayer | Mix) for m in merged.modules())
    torch.testing.assert_close(merged.eval()(X), pairs.eval()(X))
    mixes = [module for module in pairs.modules() if isinstance(module, Mix)]
    assert mixes
    for mix in mixes:
        assert torch.equal(mix.matrix()[~mix.mixed], mix.start[~mix.mixed])
        assert not torch.equal(mix.matrix(), mix.start)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_pairs_are_the_naive_network_and_stay_themselves_when_merged(name: str) -> None:
    model = NETWORKS[name]().eval()
    naive, naive_report = sc.prune_filters(model, X, Drawn(3, False), fraction=0.5)
    pairs, report = sc.prune_filters(model, X, Drawn(3, False), fraction=0.5, equivalent=True)
    assert [x.kept for x in report.layers] == [x.kept for x in naive_report.layers]
    assert bool(report.unpaired) == (name == "LITE")
    # At first each layer computes exactly what its pruned one does: the others are left out.
    assert torch.equal(pairs(0 * X), report.merge()(0 * X))
    merged = report.merge().state_dict().values()
    assert all(map(torch.equal, naive.state_dict().values(), merged))

    move(pairs)
    before = {id(p): p.clone() for p in pairs.parameters()}
    merged = merge(pairs)
    assert all(torch.equal(p, before[id(p)]) for p in pairs.parameters())
    shapes = {name: p.shape for name, p in naive.named_parameters()}
    assert {name: p.shape for name, p in merged.named_parameters()} == shapes
    check_merged(pairs, merged)


@pytest.mark.parametrize("seed", [1, 2, 7, 10, 12, 15, 20])
def test_random_networks_of_whole_numbers_merge_to_the_bit(seed: int) -> None:
    network = RandomNetwork(seed)
    model, x = network.model, network.example
    pairs, report = sc.prune_filters(model, x, Drawn(seed, False), fraction=0.5, equivalent=True)
    assert torch.equal(pairs(x), silenced(model, report)(x))
    mixes = [module for module in pairs.modules() if isinstance(module, Mix)]
    assert mixes
    for mix in mixes:  # whole numbers where they may move
        mix.moved.data = 5 * torch.randint(-2, 3, mix.moved.shape).double()
    assert torch.equal(report.merge()(x), pairs(x))


class WithInput(nn.Module):
    """Its second layer reads the input next to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 4, 1), nn.Conv1d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.cat([x, self.first(x)], dim=1))


@pytest.mark.parametrize(
    ("model", "name", "kinds"),
    [
        (Branches(), "body", [0] * 4 + [1] * 6),  # filters that are compared with each other
        (flat(), "3", [*range(10)] * 6),  # samples of filters that are flattened
        (WithInput().double(), "second", ["input", "input", 0, 0, 0, 0]),
    ],
    ids=["branches", "flat", "input"],
)
def test_what_is_alike_is_mixed(model: nn.Module, name: str, kinds: list[Any]) -> None:
    pairs, _ = sc.prune_filters(model, X, Drawn(0, False), fraction=0.5, equivalent=True)
    before: Any = pairs.get_submodule(f"{name}.decompressor")
    kept = before.start.argmax(0).tolist()  # the inputs of the pruned layer, where they come from
    assert 0 < len(kept) == len(set(kept)) < len(kinds)
    for source in range(len(kinds)):
        for column, own in enumerate(kept):
            assert before.start[source, column] == (source == own)
            alike = kinds[source] == kinds[own] != "input"
            assert before.mixed[source, column] == alike


def changing(module: nn.Module, given: Any, out: Any = None) -> Any:
    return out * 2 + 1 if out is not None else (given[0] * 2 + 1,)


def hooked(where: str, which: int) -> nn.Module:
    model = classifier()
    getattr(model[which], f"register_{where}_hook")(changing)
    return model


def frozen() -> nn.Module:
    model = classifier()
    model[0].eval().requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "unpaired"),
    [
        (Mixed(), ("0.a + 0.b", "0.g + 0.d")),  # a sparse layer and groups are among them
        (hooked("forward", 5), ("0.0", "0.5")),
        (hooked("forward_pre", 0), ("0.0",)),
        # Each conv has three sets of filters.
        (sc.models.DSN(2, 3, depth=1).double(), ("0.blocks.0.bottleneck", "0.blocks.0.conv")),
        (frozen(), ("0.0",)),  # must not be trained through a compressor
    ],
    ids=["sparse", "forward hook", "forward_pre hook", "DSN", "frozen"],
)
def test_filters_without_a_pair_are_named(model: nn.Module, unpaired: tuple[str, ...]) -> None:
    model = nn.Sequential(model, nn.Linear(3, 8).double(), nn.ReLU(), nn.Linear(8, 3).double())
    pairs, report = sc.prune_filters(model, X, Drawn(0, False), fraction=0.5, equivalent=True)
    assert report.unpaired == unpaired
    assert f"without compressors: {', '.join(unpaired)}" in str(report)
    move(pairs)
    merged = report.merge()
    modes = [module.training for module in merged.modules()]
    assert modes == [module.training for module in model.modules()]
    asks = [parameter.requires_grad for parameter in merged.parameters()]
    assert asks == [parameter.requires_grad for parameter in model.parameters()]
    check_merged(pairs, merged)


def test_layers_after_flatten_are_paired_up_to_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparseconv.pruning.equivalent.WIDEST", 60)
    for fraction in (0.5, 0.01):  # the latter removes none
        found = sc.prune_filters(flat(), X, WHC(), fraction=fraction, equivalent=True)
        assert not found.report.unpaired
    monkeypatch.setattr("sparseconv.pruning.equivalent.WIDEST", 59)
    with pytest.raises(ValueError, match="on both sides of removed filters, but all filters"):
        sc.prune_filters(flat(), X, WHC(), fraction=0.5, equivalent=True)
