"""``sc.to_dense``: the way back from sparse layers, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import OPTIONS
from pruned_models import KINDS, bits, integers, masked, pruned
from torch import nn

import sparseconv as sc
from sparseconv import SparseConv1d
from sparseconv.models.dsn import PADDINGS


@pytest.mark.promise("P2")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_there_and_back_is_the_same_weight_bit_for_bit(options: dict[str, Any], kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 6, 5, **options))
    masks = pruned(model, kind)
    converted, _ = sc.convert(model, masks=masks, layers=["0"])
    (back,) = sc.to_dense(converted)
    assert type(back) is nn.Conv1d
    expected = masked(model, masks)[0].weight + 0.0  # an inactive zero has no sign
    assert torch.equal(bits(back.weight), bits(expected))
    assert (back.weight != 0).any()
    if back.bias is not None:
        assert torch.equal(bits(back.bias), bits(model[0].bias))
    assert back.extra_repr() == model[0].extra_repr()
    again, _ = sc.convert(sc.to_dense(converted), layers=["0"])
    assert again[0].pattern == converted[0].pattern
    assert torch.equal(bits(again[0].values), bits(converted[0].values))


def test_active_zeros_and_what_is_not_finite() -> None:
    """-0.0, NaN and infinity of active weights survive; masks keep active zeros active."""
    conv = nn.Conv1d(1, 1, 5)
    special = torch.tensor([[[0.0, -0.0, float("nan"), -float("inf"), 2.0]]])
    conv.weight.data.copy_(special)
    mask = torch.tensor([[[1, 1, 1, 1, 0]]])
    converted, _ = sc.convert(nn.Sequential(conv), masks={"0.weight": mask}, layers=["0"])
    assert converted[0].pattern.nnz == 4
    back = sc.to_dense(converted)
    assert torch.equal(bits(back[0].weight)[0, 0, :4], bits(special)[0, 0, :4])
    assert bits(back[0].weight)[0, 0, 4] == 0
    kept = {name: m.pattern.to_mask() for name, m in converted.named_modules() if name}
    again, _ = sc.convert(back, masks=kept, layers=kept)
    assert again[0].pattern == converted[0].pattern
    assert torch.equal(bits(again[0].values), bits(converted[0].values))
    forgotten, _ = sc.convert(back, layers=["0"])
    assert forgotten[0].pattern.nnz == 2  # NaN and infinity: the zeros are not active any more


@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect", "circular"])
@pytest.mark.parametrize("padding", [(0, 4), (3, 1), (2, 2), "same"])
def test_to_dense_of_layers_made_by_hand(mode: str, padding: Any) -> None:
    torch.manual_seed(0)
    layer = SparseConv1d(2, 4, 5, padding=padding, padding_mode=mode, density=0.4)
    integers(layer)
    layer.eval()
    dense = sc.to_dense(nn.ModuleDict({"layer": layer}))["layer"]
    x = torch.randint(-3, 4, (2, 2, 20)).float()
    assert torch.equal(dense(x), layer(x))
    assert not any(m.training for m in dense.modules())
    conv = dense if isinstance(dense, nn.Conv1d) else dense[1]
    assert torch.equal(bits(conv.weight), bits(layer.dense_weight()))


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_whole_dsn(padding: str) -> None:
    torch.manual_seed(0)
    model = sc.models.DSN(3, 4, nf=4, kernel_size=9, depth=2, padding=padding).eval()
    dense = sc.to_dense(model)
    assert not any(isinstance(m, SparseConv1d) for m in dense.modules())
    x = torch.randn(2, 3, 40)
    torch.testing.assert_close(dense(x), model(x))


def test_a_scheduler_that_the_model_keeps_is_in_nobody_s_way() -> None:
    """It lists the layers, but does not run them."""
    model = nn.Sequential(SparseConv1d(2, 4, 5), nn.ReLU())
    model.optimizer = torch.optim.Adam(model.parameters())
    model.dst = sc.DSTScheduler(model, model.optimizer, update_every=2, end_step=9)
    assert torch.equal(sc.to_dense(model)[0].weight, model[0].dense_weight())
