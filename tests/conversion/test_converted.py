"""Converting pruned models: what the result computes, keeps and refuses."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_clock import fake_clock
from model_state import everything
from pruned_models import KINDS, X, masked, nested, pruned
from torch import Tensor, nn
from torch.nn.utils import (
    parametrizations,
    parametrize,
    prune,
    remove_spectral_norm,
    spectral_norm,
)
from torch.nn.utils.parametrize import is_parametrized

import sparseconv as sc
from sparseconv import SparseConv1d
from sparseconv.profiling import Verdict


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clock(monkeypatch)


@pytest.mark.promise("P2")
@pytest.mark.tool("sc.convert of torch.nn.utils.prune", "works")
@pytest.mark.tool("sc.convert of torch.ao.pruning masks", "works")
@pytest.mark.parametrize("kind", KINDS)
def test_a_nested_model_computes_the_same_numbers(
    kind: str, count_cases: Callable[[int], None]
) -> None:
    """Integers: outputs, and gradients of what is active, are equal bit by bit."""
    for seed in range(5):
        model = nested(seed)
        masks = pruned(model, kind)
        converted, report = sc.convert(model, masks=masks, max_density=1.0)
        layers = [m for m in converted.modules() if isinstance(m, SparseConv1d)]
        assert len(layers) == len(report.layers) == 5
        assert not any(isinstance(m, nn.Conv1d) for m in converted.modules())
        assert converted.also is converted.block[0] is converted.block[2]
        expected = masked(model, masks)(X)
        assert expected.abs().max() < 2**24
        assert (expected != 0).float().mean() > 0.3
        found = converted(X)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        before, dense = everything(converted), sc.to_dense(converted)
        torch.testing.assert_close(dense(X), expected, rtol=0, atol=0)
        changed(dense)
        assert everything(converted) == before
        count_cases(found.numel())
        if kind == "prune":
            found.sum().backward()
            model(X).sum().backward()
            for name, layer in converted.named_modules():
                if isinstance(layer, SparseConv1d):
                    conv = model.get_submodule(name)
                    active = layer.pattern.to_mask()
                    torch.testing.assert_close(layer.values.grad, conv.weight_orig.grad[active])
                    if layer.bias is not None:
                        torch.testing.assert_close(layer.bias.grad, conv.bias.grad)


@pytest.mark.promise("P2")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inplace", [False, True])
def test_what_is_computed_does_not_depend_on_which_layers_become_sparse(
    kind: str, inplace: bool, count_cases: Callable[[int], None]
) -> None:
    """A layer that stays dense keeps to its mask as well, also one of ``masks``."""
    choices = (
        {"max_density": 0.0},
        {"max_density": 0.0, "training": False},
        {"layers": ["stem", "also"]},
        {"example_input": X},
    )
    for options in choices:
        model = nested()
        masks = pruned(model, kind)
        expected = masked(model, masks)(X)
        model(X)  # pruning computes its attributes here
        before, bias = everything(model), model.stem.bias
        converted, report = sc.convert(model, masks=masks, inplace=inplace, **options)
        assert any(not layer.sparse for layer in report.layers)
        told = ["outside its mask are set to 0" in layer.reason for layer in report.layers]
        assert told == [bool(masks) and not layer.sparse for layer in report.layers]
        told = [" pruning mask " in layer.reason for layer in report.layers]
        hooked = kind in ("prune", "twice", "ao")
        assert told == [hooked and not layer.sparse for layer in report.layers]
        masking = [m._forward_pre_hooks or is_parametrized(m) for m in converted.modules()]
        assert any(masking) == (hooked and options.get("training", True))
        assert all(parameter.grad is None for parameter in converted.parameters())
        found = converted(X)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        count_cases(found.numel())
        assert converted.also is converted.block[0] is converted.block[2]
        assert (converted is model, converted.stem.bias is bias) == (inplace, inplace)
        if not inplace:
            changed(converted)
            assert everything(model) == before


def changed(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.add_(1.0)


def test_everything_else_about_a_layer_stays() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 5), nn.Conv1d(3, 3, 3)).double()
    prune.l1_unstructured(model[0], "weight", 0.5)
    model[0].weight_orig.requires_grad_(False)
    model[0].eval()
    converted, _ = sc.convert(model, layers=["0"])
    for candidate in (converted, sc.to_dense(converted)):
        layer = candidate[0]
        assert (layer.training, candidate.training) == (False, True)
        weight = layer.values if isinstance(layer, SparseConv1d) else layer.weight
        assert (weight.requires_grad, weight.dtype) == (False, torch.float64)
        assert layer.bias.requires_grad
        pickle.loads(pickle.dumps(candidate))


def test_what_is_made_in_inference_mode_trains_later() -> None:
    model = nested()
    pruned(model, "prune")
    with torch.inference_mode():
        converted, _ = sc.convert(model, example_input=X, layers=["stem"])
        back = sc.to_dense(converted)
    for candidate in (converted, back):
        candidate(X).sum().backward()
        assert all(parameter.grad is not None for parameter in candidate.parameters())


class OwnConv(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class MaskedConv(nn.Conv1d):
    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.register_buffer("mask", torch.ones(self.weight.shape))

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * self.mask, bias)


class Streaming(nn.Conv1d):
    """As in pytorch-tcn: callers may ask it to continue a stream."""

    def forward(self, x: Tensor, inference: bool = False) -> Tensor:
        return super().forward(x if inference else F.pad(x, (2, 0)))


REASONS = {
    "streaming": r"its forward takes \(x, inference\)",
    "masked": "MaskedConv does more: it calls torch.Tensor.mul; copy its weight and bias into an",
    "own": "OwnConv does more: it calls torch.Tensor.relu; copy its weight and bias into",
    "lazy": "its weight is not initialised; first run",
    "tied": r"it shares its weight \('tied', 'tied_too'\); create a separate weight for",
    "normed": r"its weight is recomputed on every call \(_WeightNorm\)",
    "bias_normed": "its bias is recomputed on every call",
    "bias_pruned": r"its bias is recomputed on every call \(L1Unstructured\)",
    "patched": "it replaces forward, _conv_forward or __call__; copy its weight and bias into",
    "listed": r"referenced by Odd\.kept, where it cannot be replaced; keep it only",
    "bound": r"referenced by Odd\.call, where it cannot be replaced",
    "applied": r"referenced by Odd\.apply_it, where it cannot be replaced",
    "wrapped": r"referenced by Odd\.wrapper, where it cannot be replaced",
    "multiplied": r"has a weight that is also referenced by Odd\.multiply, where it cannot be",
    "penalised": r"has a weight that is also referenced by Odd\.weights, where it cannot be",
    "complex": r"dtype must be one of .*, but got torch\.complex64",
    "empty": "its weight is on the meta device and has no data; load",
    "hooked": "it has hooks, which would be lost; remove them, and add them again afterwards",
}


class Odd(nn.Module):
    """Layers that cannot be replaced, each for another reason, and one that can."""

    def __init__(self) -> None:
        super().__init__()
        for name in (*REASONS, "fine"):
            setattr(self, name, nn.Conv1d(2, 2, 3))
        self.own, self.masked = OwnConv(2, 2, 3), MaskedConv(2, 2, 3)
        self.streaming = Streaming(2, 2, 3)
        self.lazy = nn.LazyConv1d(2, 3)
        self.tied_too = nn.Conv1d(2, 2, 3)
        self.tied_too.weight = self.tied.weight
        parametrizations.weight_norm(self.normed)
        parametrizations.weight_norm(self.bias_normed, "bias")
        self.patched.forward = lambda x: x
        self.kept = [{"conv": self.listed}]
        self.call = self.bound.forward
        self.apply_it = partial(nn.Module.__call__, self.applied)
        self.wrapper = SimpleNamespace(layer=self.wrapped)
        self.multiply = [partial(F.conv1d, weight=self.multiplied.weight)]
        self.weights = [self.penalised.weight]
        self.complex = nn.Conv1d(2, 2, 3, dtype=torch.complex64)
        self.empty = nn.Conv1d(2, 2, 3, device="meta")
        prune.l1_unstructured(self.bias_pruned, "bias", 1)
        self.hooked.register_forward_hook(lambda *_: None)
        self.fine.weight.data[0] = 0
        self.optimizer = torch.optim.SGD([self.fine.weight])  # it does not run the layer

    def forward(self, x: Tensor) -> Tensor:
        return self.fine(x)


def test_what_cannot_be_replaced_is_left_and_said() -> None:
    model = Odd()
    converted, report = sc.convert(model, max_density=1.0)
    found = {layer.name: layer for layer in report.layers}
    assert found["fine"].sparse
    assert found["own"].density is None
    for name, reason in REASONS.items():
        assert not found[name].sparse
        assert type(converted.get_submodule(name)) is not SparseConv1d
        with pytest.raises(ValueError, match=f"layer '{name}' cannot be converted: .*{reason}"):
            sc.convert(model, layers=[name])
    assert isinstance(converted.fine, SparseConv1d)


def test_a_mask_by_hand_is_one_if_it_is_given() -> None:
    """No forward pass applies it; its zeros count once they are in the weight."""
    conv = nn.Conv1d(2, 3, 5)
    mask = torch.rand(3, 2, 5) < 0.3
    conv.register_buffer("weight_mask", mask)
    model = nn.Sequential(conv)
    converted, report = sc.convert(model, max_density=1.0)
    assert report.layers[0].verdict is Verdict.UNPRUNED
    assert isinstance(converted[0], nn.Conv1d)
    converted, _ = sc.convert(model, masks={"0": mask}, max_density=1.0)
    assert torch.equal(converted[0].pattern.to_mask(), mask)


class Named(nn.Conv1d):
    def describe(self) -> int:
        return self.weight.numel()


def test_what_does_not_compute_is_carried_over_or_lost() -> None:
    """Bookkeeping attributes, hooks that torch left behind, state and methods of a subclass."""
    marked, normed, spectral = (nn.Conv1d(2, 2, 3) for _ in range(3))
    stateful, subclass = nn.Conv1d(2, 2, 3), Named(2, 2, 3)
    marked._is_hf_initialized = True
    marked.pattern = "this is a name that a sparse layer uses"
    for conv, kind in ((normed, parametrizations.weight_norm), (spectral, spectral_norm)):
        kind(conv)
        if conv is normed:
            parametrize.remove_parametrizations(conv, "weight")
        else:
            remove_spectral_norm(conv)
    stateful.register_buffer("steps", torch.tensor(3))
    subclass.note = ["a list"]
    model = nn.Sequential(marked, normed, spectral, stateful, subclass)
    for conv in model:
        prune.l1_unstructured(conv, "weight", 0.5)
    converted, _ = sc.convert(model, max_density=0.5)
    assert all(isinstance(layer, SparseConv1d) for layer in converted)
    assert converted[0].pattern.density == 0.5
    assert converted[0]._is_hf_initialized
    assert converted[4].note == subclass.note
    assert converted[4].note is not subclass.note
    x = torch.randn(2, 2, 19)
    torch.testing.assert_close(converted(x), model(x))


SERIES = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))


def conv(channels: int = 3) -> nn.Conv1d:
    return prune.l1_unstructured(nn.Conv1d(channels, 4, 9), "weight", 0.9)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
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
    (lambda model: getattr(model.second, "weight", SERIES).abs().max(), "output changes"),
    (lambda model: model.state_dict()["second.weight_orig"].sum(), "KeyError: 'second.weight_orig"),
]


@pytest.mark.promise("P2")
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("ask", "reason"), ASKED)
def test_a_layer_stays_dense_if_the_output_would_change(ask: Any, reason: str) -> None:
    model = Asks(ask)
    converted, report = sc.convert(model, example_input=SERIES)
    assert [layer.sparse for layer in report.layers] == [True, False]
    assert reason in report.layers[1].reason
    assert converted(SERIES)["answer"] == model(SERIES)["answer"]
    with pytest.raises(ValueError, match=f"'second' cannot be converted: if it is .*{reason}"):
        sc.convert(model, example_input=SERIES, layers=["second"])


@pytest.mark.usefixtures("fast")
def test_code_that_runs_only_in_torchs_layers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(layer: nn.Module, _: Any, y: Tensor) -> Tensor | None:
        return 2 * y if isinstance(layer, nn.Conv1d) else None

    handle = torch.nn.modules.module.register_module_forward_hook(double)
    hooked = sc.convert(conv(), example_input=SERIES).report
    handle.remove()
    plain = nn.Conv1d.forward
    monkeypatch.setattr(nn.Conv1d, "forward", lambda conv, x: 2 * plain(conv, x))
    patched = sc.convert(conv(), example_input=SERIES).report
    for report in (hooked, patched):
        assert "the model's output changes" in report.layers[0].reason


class Ends(nn.Module):
    """A layer, and a function of it and of its output."""

    def __init__(self, end: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.end = conv(), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.conv, self.conv(x))


@pytest.mark.usefixtures("fast")
def test_complex_outputs_agree_up_to_rounding() -> None:
    converted, report = sc.convert(Ends(lambda _, y: torch.fft.rfft(y)), example_input=SERIES)
    assert report.layers[0].sparse
    assert converted(SERIES).dtype == torch.complex64


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    "end",
    [
        lambda conv, y: torch.fft.rfft(y) + 0.05j * (not isinstance(conv, nn.Conv1d)),
        lambda conv, y: y if hasattr(conv, "weight") else y.double(),
    ],
    ids=["imaginary part", "dtype"],
)
def test_whatever_differs_is_noticed(end: Callable[[nn.Module, Tensor], Any]) -> None:
    (layer,) = sc.convert(Ends(end), example_input=SERIES).report.layers
    assert "the model's output changes" in layer.reason


@pytest.mark.usefixtures("fast")
def test_the_default_device_may_be_another() -> None:
    model = Ends(lambda _, y: (y, 0.5))
    with torch.device("meta"):
        converted, report = sc.convert(model, example_input=SERIES)
    assert report.layers[0].sparse
    assert {p.device.type for p in converted.parameters()} == {"cpu"}
