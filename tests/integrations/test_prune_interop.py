"""Pruning, parametrizing and scheduling the values of a sparse layer with torch's own tools."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from dst_runs import scheduled
from torch import Tensor, nn
from torch.ao.pruning import BaseSparsifier, FakeSparsity
from torch.nn.utils import parametrizations, parametrize, prune

import sparseconv as sc
from sparseconv import SparseConv1d

X = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))


def layer() -> SparseConv1d:
    torch.manual_seed(0)
    return SparseConv1d(3, 6, 5, density=0.4)


def check_computes(sparse: SparseConv1d, values: Tensor) -> None:
    """Output and gradients of a layer whose values are computed are those of ``F.conv1d``."""
    weight = torch.zeros(sparse.pattern.numel)
    weight = weight.index_put((sparse.pattern.positions(),), values).view(sparse.pattern.shape)
    expected = nn.functional.conv1d(X, weight, sparse.bias)
    # Pruning computes its attributes in forward passes only; these are those of the next one.
    torch.testing.assert_close(sparse.dense_weight(), weight)
    torch.testing.assert_close(sparse.to_dense()(X), expected)
    found = sparse(X)
    torch.testing.assert_close(found, expected)
    parameters = [p for name, p in sparse.named_parameters() if name != "bias"]
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
    )


@pytest.mark.tool("torch.nn.utils.prune on values", "works", "prune.remove before a new pattern")
def test_pruning() -> None:
    sparse = layer()
    before = sparse.values.detach().clone()
    prune.global_unstructured([(sparse, "values")], prune.L1Unstructured, amount=0.5)
    mask = sparse.values_mask
    assert mask.sum() == 18
    check_computes(sparse, sparse.values_orig * mask)
    sparse.values_orig.data.mul_(2)  # an optimizer's step
    check_computes(sparse, sparse.values_orig * mask)
    twice = copy.deepcopy(prune.remove(sparse, "values"))
    assert torch.equal(twice.values, 2 * before * mask)
    smaller = SparseConv1d.from_dense(twice.to_dense())  # the way to store what is left only
    assert smaller.pattern.nnz == 18
    torch.testing.assert_close(smaller(X), twice(X))


class Doubled(nn.Module):
    """A parametrization with a way back."""

    def forward(self, values: Tensor) -> Tensor:
        return 2 * values

    def right_inverse(self, values: Tensor) -> Tensor:
        return values / 2


@pytest.mark.tool("torch.nn.utils.parametrize on values", "works", "fixed pattern while it lasts")
def test_parametrizing() -> None:
    sparse, twin = layer(), layer()
    values = sparse.values.detach().clone()
    for each in (sparse, twin):
        parametrize.register_parametrization(each, "values", Doubled())
    original = sparse.get_submodule("parametrizations.values").original
    assert torch.equal(2 * original, values)
    with parametrize.cached():
        check_computes(sparse, 2 * original)
    twin.load_state_dict(sparse.state_dict())
    for copied in (twin, copy.deepcopy(sparse)):
        assert torch.equal(copied(X), sparse(X))
    parametrize.remove_parametrizations(sparse, "values")
    assert type(sparse) is SparseConv1d
    assert sparse.get_parameter("values").equal(values)
    sparse.set_pattern(sc.KernelCSR.full((6, 3, 5)))


def test_computed_values_keep_their_pattern() -> None:
    for change in (
        lambda m: prune.l1_unstructured(m, "values", 7),
        lambda m: parametrize.register_parametrization(m, "values", Doubled()),
    ):
        sparse = layer()
        change(sparse)
        with pytest.raises(RuntimeError, match=r"remove_parametrizations\(layer, 'values'\)"):
            sparse.set_pattern(sc.KernelCSR.full((6, 3, 5)))
        with pytest.raises(RuntimeError, match=r"prune\.remove\(layer, 'values'\)"):
            scheduled(sparse)
        torch.testing.assert_close(sc.to_dense(sparse)(X), sparse(X))


@pytest.mark.tool("weight_norm on values", "works", "one norm for each active weight, so no use")
@pytest.mark.tool("spectral_norm on values", "works", "divides by the norm of all active weights")
def test_norms() -> None:
    sparse = parametrizations.weight_norm(layer(), "values")
    held = sparse.parametrizations["values"]
    check_computes(sparse, torch._weight_norm(held.original1, held.original0, 0))
    sparse = parametrizations.spectral_norm(layer(), "values")
    values = sparse.parametrizations["values"].original
    check_computes(sparse, values / values.norm())


@pytest.mark.tool("weight_norm, spectral_norm, prune on 'weight'", "refuses", "name 'values'")
@pytest.mark.tool("prune.ln_structured on values", "refuses", "values have one dimension")
def test_there_is_no_weight_and_values_have_one_dimension() -> None:
    sparse = layer()
    for refused in (
        lambda: prune.l1_unstructured(sparse, "weight", 0.5),
        lambda: parametrizations.weight_norm(sparse),
        lambda: parametrizations.spectral_norm(sparse),
        lambda: prune.ln_structured(sparse, "values", 0.5, n=2, dim=0),
    ):
        with pytest.raises((AttributeError, ValueError), match=r"weight|multidimensional"):
            refused()
    assert type(sparse) is SparseConv1d


class RandomSparsifier(BaseSparsifier):
    """Half of everything."""

    def update_mask(self, module: nn.Module, tensor_name: str, **_: Any) -> None:
        mask = module.parametrizations[tensor_name][0].mask
        mask.copy_(torch.arange(mask.numel()).view_as(mask) % 2)


@pytest.mark.tool("torch.ao.pruning on values", "works")
def test_torch_ao_pruning() -> None:
    model = nn.Sequential(layer(), nn.ReLU())
    before = model[0].values.detach().clone()
    sparsifier = RandomSparsifier({})
    sparsifier.prepare(model, [{"tensor_fqn": "0.values"}])
    assert isinstance(model[0].parametrizations["values"][0], FakeSparsity)
    sparsifier.step()
    kept = torch.arange(36) % 2
    check_computes(model[0], model[0].parametrizations["values"].original * kept)
    sparsifier.squash_mask()
    assert type(model[0]) is SparseConv1d
    assert torch.equal(model[0].values, before * kept)
