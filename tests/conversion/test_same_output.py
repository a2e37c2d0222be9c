"""``sc.convert`` runs the model on ``example_input``, and makes nothing sparse that changes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_clock import fake_clock
from torch import Tensor, nn
from torch.nn.utils import prune

import sparseconv as sc

X = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))


def conv(channels: int = 3) -> nn.Conv1d:
    return prune.l1_unstructured(nn.Conv1d(channels, 4, 9), "weight", 0.9)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clock(monkeypatch, lambda name, _: 3.0 if name.startswith("dense") else 1.0)


class Asks(nn.Module):
    """Calls two layers; its output depends on random draws, and on an answer about the second."""

    def __init__(self, ask: Any) -> None:
        super().__init__()
        self.first, self.second, self.ask = conv(), conv(4), ask

    def forward(self, x: Tensor) -> Any:
        y = self.second(F.dropout(self.first(x))) * torch.rand(1)
        return {"y": y, "answer": 2.0 * self.ask(self)}


ASKED: list[tuple[Any, str]] = [
    (lambda model: hasattr(model.second, "weight"), "output changes"),
    (lambda model: isinstance(model.second, nn.Conv1d), "output changes"),
    (lambda model: getattr(model.second, "weight", X).abs().max(), "output changes"),
    (lambda model: model.state_dict()["second.weight_orig"].sum(), "KeyError: 'second.weight_orig"),
]


@pytest.mark.promise("P2")
@pytest.mark.parametrize(("ask", "reason"), ASKED)
def test_a_layer_stays_dense_if_the_output_would_change(ask: Any, reason: str) -> None:
    model = Asks(ask)
    converted, report = sc.convert(model, example_input=X)
    assert [layer.sparse for layer in report.layers] == [True, False]
    assert reason in report.layers[1].reason
    assert converted(X)["answer"] == model(X)["answer"]
    with pytest.raises(ValueError, match=f"'second' cannot be converted: if it is .*{reason}"):
        sc.convert(model, example_input=X, layers=["second"])


def test_code_that_runs_only_in_torchs_layers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(layer: nn.Module, _: Any, y: Tensor) -> Tensor | None:
        return 2 * y if isinstance(layer, nn.Conv1d) else None

    handle = torch.nn.modules.module.register_module_forward_hook(double)
    hooked = sc.convert(conv(), example_input=X).report
    handle.remove()
    plain = nn.Conv1d.forward
    monkeypatch.setattr(nn.Conv1d, "forward", lambda conv, x: 2 * plain(conv, x))
    patched = sc.convert(conv(), example_input=X).report
    for report in (hooked, patched):
        assert "the model's output changes" in report.layers[0].reason


class Spectrum(nn.Module):
    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.conv, self.wrong = conv(), wrong

    def forward(self, x: Tensor) -> Tensor:
        error = self.wrong * (not isinstance(self.conv, nn.Conv1d))
        return torch.fft.rfft(self.conv(x)) + error * 1j


def test_complex_outputs_agree_up_to_rounding() -> None:
    """Whatever differs, in the real or the imaginary part, is still noticed."""
    converted, report = sc.convert(Spectrum(), example_input=X)
    assert report.layers[0].sparse
    assert converted(X).dtype == torch.complex64
    (layer,) = sc.convert(Spectrum(wrong=1.0), example_input=X).report.layers
    assert "the model's output changes" in layer.reason


def test_an_output_of_another_dtype_has_changed() -> None:
    class Retyped(Spectrum):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).to(torch.float32 if hasattr(self.conv, "weight") else torch.float64)

    (layer,) = sc.convert(Retyped(), example_input=X).report.layers
    assert "the model's output changes" in layer.reason


def test_the_default_device_may_be_another() -> None:
    class Scored(Spectrum):
        def forward(self, x: Tensor) -> Any:
            return self.conv(x), 0.5

    model = Scored()
    with torch.device("meta"):
        converted, report = sc.convert(model, example_input=X)
    assert report.layers[0].sparse
    assert {p.device.type for p in converted.parameters()} == {"cpu"}
