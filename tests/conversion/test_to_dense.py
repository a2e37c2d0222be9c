"""``sc.to_dense``, bit for bit, and subclasses of ``nn.Conv1d`` that become sparse layers."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import OPTIONS
from pruned_models import KINDS, bits, integers, masked, pruned
from torch import Tensor, nn
from torch.nn.utils import prune

import sparseconv as sc
from sparseconv import SparseConv1d


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


def test_a_scheduler_that_the_model_keeps_is_in_nobody_s_way() -> None:
    """It lists the layers, but does not run them."""
    model = nn.Sequential(SparseConv1d(2, 4, 5), nn.ReLU())
    model.optimizer = torch.optim.Adam(model.parameters())
    model.dst = sc.DSTScheduler(model, model.optimizer, update_every=2, end_step=9)
    assert torch.equal(sc.to_dense(model)[0].weight, model[0].dense_weight())


class Causal(nn.Conv1d):
    def __init__(self, n_in: int, n_out: int, taps: int, dilation: int = 1, **options: Any) -> None:
        super().__init__(n_in, n_out, taps, dilation=dilation, **options)
        self.left = (taps - 1) * dilation
        self.pad = nn.ConstantPad1d((self.left, 0), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.left, 0)))


def kind(**methods: Any) -> Any:
    return type("Own", (nn.Conv1d,), methods)


def convolved(conv: nn.Conv1d, x: Any) -> Any:
    options = conv.stride, conv.padding, conv.dilation, conv.groups
    return F.conv1d(x, conv.weight, conv.bias, *options)


def same(conv: nn.Conv1d, x: Any) -> Any:
    """As in networks that came from TensorFlow; with a stride it depends on the length."""
    n, stride, reach = x.shape[-1], conv.stride[0], conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    pad = max((math.ceil(n / stride) - 1) * stride + reach - n, 0)
    return PLAIN(conv, F.pad(x, [pad // 2, pad - pad // 2]) if pad > 0 else x)


def replicated(conv: nn.Conv1d, x: Any, *weights: Any) -> Any:
    return nn.Conv1d._conv_forward(conv, F.pad(x, [4, 1], mode="replicate"), *weights)


def cast(conv: nn.Conv1d, x: Any, *weights: Any) -> Any:
    """As in OpenAI's Whisper."""
    return nn.Conv1d._conv_forward(conv, x, *(weight.to(x.dtype) for weight in weights))


PLAIN = nn.Conv1d.forward
PADDED = kind(forward=lambda c, x: convolved(c, nn.ConstantPad1d((2, 0), 0.0)(x)))
CHOMPED = kind(forward=lambda c, x: PLAIN(c, x)[:, :, : -c.padding[0]].contiguous())
CUT = kind(forward=lambda c, x: PLAIN(c, x)[..., : x.size(-1)])
LAYERS: dict[str, tuple[Any, Any]] = {
    "causal": (lambda: Causal(4, 6, 5, dilation=2), (8, 0)),
    "causal, strided": (lambda: Causal(4, 6, 5, stride=3, groups=2, padding=1), (5, 1)),
    "by a module": (lambda: PADDED(4, 6, 3, bias=False), (2, 0)),
    "replicated": (lambda: kind(_conv_forward=replicated)(4, 6, 3, stride=2), (4, 1)),
    "cast": (lambda: kind(_conv_forward=cast)(4, 6, 4, padding="same"), (1, 2)),
    "chomped": (lambda: CHOMPED(4, 6, 5, padding=4), (4, 0)),
    "cut to the length": (lambda: CUT(4, 6, 5, padding=8, dilation=2), (8, 0)),
    "same": (lambda: kind(forward=same)(4, 6, 4), (1, 2)),
}


@pytest.mark.promise("P2")
@pytest.mark.parametrize("name", LAYERS)
def test_a_subclass_that_pads_becomes_sparse(name: str, count_cases: Any) -> None:
    torch.manual_seed(0)
    make, padding = LAYERS[name]
    conv = integers(make())
    prune.l1_unstructured(conv, "weight", 0.7)
    converted, _ = sc.convert(nn.Sequential(conv, nn.ReLU()), layers=["0"])
    assert converted[0].resolved_padding == padding
    direct = SparseConv1d.from_dense(conv)
    for length in (9, 30, 31):
        x = torch.randint(-3, 4, (2, 4, length)).float()
        for layer in (converted[0], direct, sc.to_dense(converted)[0]):
            assert layer(x).equal(conv(x))
        count_cases(3)


@pytest.mark.promise("P2")
@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect", "circular"])
def test_padding_is_what_torch_pads(mode: str) -> None:
    """Apart from zeros, torch pads by a private list, which is filled when a layer is built."""

    def causal(conv: Any) -> None:
        conv._reversed_padding_repeated_twice = [4, 0]

    torch.manual_seed(0)
    x = torch.randint(-3, 4, (2, 3, 20)).float()
    changes: list[Any] = [
        causal,
        lambda conv: setattr(conv, "padding", (0,)),
        lambda conv: setattr(conv, "padding_mode", "replicate"),
        lambda conv: None,
    ]
    for padding, change in product((0, 2, "same"), changes):
        conv = integers(nn.Conv1d(3, 4, 5, padding=padding, padding_mode=mode)).eval()
        change(conv)
        layer = SparseConv1d.from_dense(conv)
        dense = sc.to_dense(nn.ModuleDict({"layer": layer}))["layer"]
        assert not any(m.training for m in dense.modules())
        assert torch.equal(sc.convert(nn.Sequential(conv), layers=["0"]).model(x), conv(x))
        for each in (layer, layer.to_dense(), dense):
            assert torch.equal(each(x), conv(x))
