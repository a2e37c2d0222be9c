"""Pruned models go wherever whole ones go; sums of whole numbers show it to the bit."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import MODELS, Drawn, exact
from torch import Tensor, nn

import sparseconv as sc
from sparseconv import DSTScheduler, SparseConv1d
from sparseconv.pruning import WHC

RNG = torch.Generator().manual_seed(0)
X = 50 * torch.randint(-2, 3, (3, 2, 50), generator=RNG).double()


def pruned(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return sc.prune_filters(exact(MODELS[name](), seed), X, Drawn(7, False), fraction=0.5).model


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    twin.load_state_dict(model.state_dict())
    return twin


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def converted(model: nn.Module) -> nn.Module:
    names = [name for name, module in model.named_modules() if type(module) is nn.Conv1d]
    result = sc.convert(model, layers=names).model
    assert sum(isinstance(module, SparseConv1d) for module in result.modules()) >= len(names)
    return sc.to_dense(result)


WAYS: list[Callable[[Any], Any]] = [
    saved,
    copy.deepcopy,
    loaded,
    converted,
    sc.optimize_for_inference,
    lambda model: sc.prune_filters(model, X, WHC(), fraction=0).model,
]
SLOW: list[Callable[[Any], Any]] = [
    compiled,
    lambda model: torch.export.export(model, (X,)).module(),
]


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_same_outputs(name: str) -> None:
    model = pruned(name)
    # Nothing is rounded before the logarithm, so neither order nor folding changes a bit.
    features: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _, __, y: features.append(2**20 * y))
        for module in model.modules()
    ]
    expected = model(X)
    assert len(expected.unique()) > 3
    for handle in handles:
        handle.remove()
    for feature in (feature for feature in features if feature.dim() == 3):
        assert torch.equal(feature.round(), feature)
        assert feature.abs().max() < 2**52
    for way in WAYS + SLOW * (name in ("LITE", "DSN")):
        assert torch.equal(way(model)(X), expected), way


def test_dynamic_sparse_training_of_a_pruned_dsn() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(9, 2, 40), torch.arange(9) % 3
    model = sc.prune_filters(MODELS["DSN"](), x, WHC(), fraction=0.5).model
    regions = [layer.regions for layer in model.sparse_layers()]
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
