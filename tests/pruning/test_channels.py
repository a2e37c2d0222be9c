"""Which channels are tied: what is left computes what the whole network does without them."""

from __future__ import annotations

import pytest
import torch
from networks import Drawn, silenced
from random_networks import RandomNetwork
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sparseconv as sc
from sparseconv.pruning.tracing import trace


@pytest.mark.parametrize("block", range(6))
def test_random_networks(block: int) -> None:
    refused = []
    for seed in range(10 * block, 10 * block + 10):
        network = RandomNetwork(seed)
        model, x = network.model, network.example
        if not (channels := trace(model, (x,))).n_units:
            refused.append(seed)
            continue
        ratio = (seed % 7 + 1) / 9
        small, report = sc.prune_filters(model, x, Drawn(seed, seed % 2 == 0), ratio=ratio)
        assert torch.equal(small(x), silenced(model, report)(x)), model
        assert report.macs[0] == channels.macs()
        assert report.parameters[1] == sum(p.numel() for p in small.parameters())
        for layer in report.layers:
            module = small.get_submodule(layer.name)
            assert 1 <= layer.filters[1] == len(layer.kept) <= layer.filters[0]
            assert layer.parameters[1] == sum(p.numel() for p in module.parameters())
    assert len(refused) < 2  # of 10


class Folded(nn.Module):
    """Convolutions of patches, and a Linear of every sample, in the batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 6, 3, padding=1), nn.Conv1d(6, 8, 3, padding=1)
        self.each, self.out = nn.Linear(8, 5), nn.Linear(5, 2)

    def forward(self, flag: Tensor, x: Tensor) -> Tensor:
        patches = x.unflatten(2, (4, 10)).transpose(1, 2).flatten(0, 1)
        y = self.second(self.first(patches).relu()).relu()
        y = self.each(y.transpose(1, 2).reshape(-1, y.shape[1])).relu()
        return self.out(y.view(len(x), -1, y.shape[1]).mean(1)) * flag


def test_multiply_adds_of_a_series_wherever_it_stands_in_a_batch() -> None:
    model, arguments = Folded(), (torch.ones(1), torch.randn(3, 1, 40))
    target = 5_000
    result = sc.prune_filters(model, arguments, Drawn(0, False), target_macs=target)
    for count, counted in zip(result.report.macs, (model, result.model), strict=True):
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            counted(*arguments)
        assert flops.get_total_flops() == 2 * 3 * count
    assert result.report.macs[1] <= target < result.report.macs[0]


def test_a_dsn_keeps_its_kernel_groups() -> None:
    model = sc.models.DSN(1, 2, nf=6)
    pruned, report = sc.prune_filters(model, torch.zeros(1, 1, 50), Drawn(1, False), ratio=0.5)
    conv = pruned.blocks[1].conv
    assert conv.regions == tuple(sc.Region((3 * i, 3 * i + 3), (0, 13 * (i + 1))) for i in range(3))
    old = model.blocks[1].conv
    rows, columns = (
        next(layer.kept for layer in report.layers if layer.name == f"blocks.1.{name}")
        for name in ("conv", "bottleneck")
    )
    assert torch.equal(conv.dense_weight(), old.dense_weight()[list(rows)][:, list(columns)])
    assert pruned.cost(50).params == report.parameters[1]
    assert pruned.cost(50).macs_executed == report.macs[1]


def test_a_layer_that_is_called_twice_is_counted_twice() -> None:
    layer = nn.Conv1d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv1d(2, 4, 1), layer, nn.MaxPool1d(2), layer, nn.Conv1d(4, 3, 1))
    channels = trace(model, (torch.zeros(1, 2, 12),))
    assert channels.macs() == 12 * 2 * 4 + (12 + 6) * 4 * 4 * 3 + 6 * 4 * 3
