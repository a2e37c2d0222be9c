"""``Block`` in bfloat16, in rows: on AMX, on AVX-512, and on their twins (ops: test_row_ops)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv import SparseConv1d
from sparseconv.models import DSN
from sparseconv.nn import block as block_module
from sparseconv.ops.orders import in_rows

BF16 = torch.bfloat16
UNIT = torch.finfo(BF16).eps / 2  # of one rounding


def test_autocast_and_a_model_of_bfloat16(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are as near to float64 as those of torch's modules, within a factor of two."""
    torch.manual_seed(0)
    ran = []
    channels_after = block_module._channels_after
    monkeypatch.setattr(
        block_module,
        "_channels_after",
        lambda parts, x: (len(parts) > 1 and ran.append(len(parts))) or channels_after(parts, x),
    )
    model = DSN(3, 4, nf=16, kernel_size=9, depth=2, block=16)
    x, y = torch.randn(6, 3, 30), torch.arange(6) % 4

    def gradients(model: nn.Module, x: Tensor, casts: bool) -> list[Tensor]:
        with torch.autocast("cpu", BF16, enabled=casts):
            out = model(x)
        loss = F.nll_loss(out.to(torch.float64 if x.dtype == torch.float64 else torch.float32), y)
        return list(torch.autograd.grad(loss, list(model.parameters())))

    exact = gradients(copy.deepcopy(model).double(), x.double(), False)
    ran.clear()
    for twin, given, casts in (
        (copy.deepcopy(model), x, True),
        (copy.deepcopy(model).to(BF16), x.to(BF16), False),
    ):
        modules = copy.deepcopy(twin)
        got = gradients(twin, given, casts)
        assert ran == [7], "two blocks and the head run together"
        with monkeypatch.context() as patch:
            patch.setattr(block_module, "runs_eagerly", lambda: False)
            others = gradients(modules, given, casts)
        assert ran.pop() == 7
        assert [g.dtype for g in got] == [p.dtype for p in twin.parameters()]
        for a, b, wanted in zip(got, others, exact, strict=True):
            assert (a.double() - wanted).norm() <= 2 * (
                b.double() - wanted
            ).norm() + UNIT * wanted.norm()
    with torch.autocast("cpu", torch.float16):
        assert not in_rows(x)


def test_single_weights_run_module_by_module(unit: str) -> None:
    layer = SparseConv1d(16, 16, 3, padding=1, density=0.3).to(BF16)
    x = torch.randn(2, 16, 20).to(BF16)
    block = block_module.Block(layer, nn.BatchNorm1d(16), nn.ReLU()).to(BF16)
    plain = nn.Sequential(*copy.deepcopy(block))
    assert block(x).equal(plain(x))


def test_a_norm_that_begins_keeps_float32_and_types_are_those_of_modules(unit: str) -> None:
    torch.manual_seed(0)
    conv = SparseConv1d(32, 32, 3, padding=1, block=16)
    block = block_module.Block(nn.BatchNorm1d(32), nn.ReLU(), conv, nn.BatchNorm1d(32), nn.ReLU())
    x = 1000 + torch.randn(3, 32, 40)
    plain = nn.Sequential(*copy.deepcopy(block))
    with torch.autocast("cpu", BF16):
        y, wanted = block(x), plain(x)
    assert (y - wanted).norm() <= 4 * UNIT * wanted.norm()
    torch.testing.assert_close(block[0].running_var, plain[0].running_var)
    for modules in (block[2:], plain[2:]):
        with pytest.raises((RuntimeError, TypeError), match=r"(?i)type"):
            modules(x.to(BF16))  # float32 weights without autocast


def test_a_1x1_convolution_of_too_many_channels_runs_as_a_module(unit: str) -> None:
    block = block_module.Block(SparseConv1d(16, 16, 3, padding=1, block=16), nn.Conv1d(16, 2100, 1))
    x = torch.randn(1, 16, 5)
    with torch.autocast("cpu", BF16):
        torch.testing.assert_close(block(x), nn.Sequential(*block)(x))
