"""The report of ``sc.prune_filters``: figures that are those of the modules, in every form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_clock import fake_clock
from model_state import everything
from networks import MODELS, Drawn, classifier, data
from torch.utils.flop_counter import FlopCounterMode

import sparseconv as sc
from sparseconv.models.lite import hand_made_filters
from sparseconv.profiling.stopwatch import model_passes
from sparseconv.pruning import DSP, WHC

X, Y = data()


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_the_modules(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(3, 2, 40)
    report = sc.prune_filters(model, x, Drawn(0, False), fraction=0.5).report
    for i, whole in enumerate((report.before, report.after)):
        assert report.parameters[i] == sum(p.numel() for p in whole.parameters())
        assert report.parameters[i] == sum(layer.parameters[i] for layer in report.layers)
        # LITE's hand-made filters are functions on buffers, of each input channel.
        taps = sum(filter.shape[2] for filter in hand_made_filters())
        others = 40 * 2 * taps if name == "LITE" else 0
        assert report.macs[i] == others + sum(layer.macs[i] for layer in report.layers)
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            whole.eval()(x)
        # torch pads an even kernel, and counts as if it computed more samples.
        of_torch = pytest.approx(report.macs[i], rel=0.05)
        assert name in ("DSN", "OSCNN") or flops.get_total_flops() / 2 / len(x) == of_torch
        for layer in report.layers:
            module: Any = whole.get_submodule(layer.name)
            assert layer.kind == type(module).__name__
            assert layer.parameters[i] == sum(p.numel() for p in module.parameters())
            sizes = {"Linear": "out_features", "BatchNorm1d": "num_features"}
            assert layer.filters[i] == getattr(module, sizes.get(layer.kind, "out_channels"))
    # Half of each branch; what the input or the output fixes, and hand-made filters, stay.
    fixed = {"LITE": 17}.get(name, 0)
    for layer in report.layers:
        before, after = layer.filters
        assert before <= 3 or after - fixed <= before / 2 + 3
        assert len(set(layer.kept)) == after
        assert set(layer.kept) <= set(range(before))


def twice() -> torch.nn.Module:
    layer = torch.nn.Conv1d(6, 6, 3, padding=1)
    return torch.nn.Sequential(torch.nn.Conv1d(2, 6, 1), layer, layer, torch.nn.Conv1d(6, 3, 1))


@pytest.mark.parametrize(("make", "training"), [(MODELS["DSN"], True), (twice, False)])
def test_measured_times(make: Callable[[], torch.nn.Module], training: bool) -> None:
    model, x = make(), torch.randn(2, 2, 12)
    report = sc.prune_filters(model, x, Drawn(0, False), fraction=0.5).report
    states = [everything(report.before), everything(report.after)]
    timed = report.measure(rounds=6, least_seconds=1e-6, training=training)
    assert [everything(report.before), everything(report.after)] == states
    assert not any((report.times, *(layer.times for layer in report.layers)))
    assert set(timed.times) == ({"inference", "training"} if training else {"inference"})
    for times in (*timed.times.values(), *(layer.times["inference"] for layer in timed.layers)):
        for found in (times.before, times.after, times.speedup):
            assert 0 < found.low <= found.median <= found.high
    assert timed.machine["threads"] == str(torch.get_num_threads())


def test_copies_are_timed_with_compressors_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[torch.nn.Module] = []

    def watched(model: torch.nn.Module, *given: Any) -> Any:
        timed.append(model)
        return model_passes(model, *given)

    monkeypatch.setattr("sparseconv.pruning.report.model_passes", watched)
    report = sc.prune_filters(classifier(), X, WHC(), fraction=0.5, equivalent=True).report
    report.measure(rounds=6, least_seconds=1e-6)
    assert not {report.before, report.after} & {*timed}
    assert [sum(p.numel() for p in model.parameters()) for model in timed] == [*report.parameters]


def test_ratios_are_before_by_after(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whole model: 12 ms before and 4 after; a layer takes 3 and 1.
    names: list[str] = []

    def milliseconds(name: str, turn: int) -> float:
        names.append(name)
        return (12 if turn == 4 else 3) / (3 if name.startswith("after") else 1)

    fake_clock(monkeypatch, milliseconds)
    model = classifier()
    report = sc.prune_filters(model, X, WHC(), fraction=0.5).report.measure(
        training=False, rounds=6
    )
    assert set(names) == {"before inference", "after inference"}
    whole = report.times["inference"]
    assert (whole.before.median, whole.after.median) == pytest.approx((12, 4))
    assert whole.speedup.median == pytest.approx(3)
    for layer in report.layers:
        assert layer.times["inference"].speedup.median == pytest.approx(3)


def test_the_curve_of_dsp() -> None:
    model = classifier(16)
    report = sc.prune_filters(model, X, DSP(X, eps=0.3)).report
    (least, first), *_, (most, last) = report.curve()
    assert (least, most, last) == (pytest.approx(1e-6), 1, 2)  # of each layer one
    assert f"other thresholds: {first} at 1e-06, " in str(report)
    assert f", {last} at 1\n" in str(report) + "\n"
    for eps in (0.0, 0.1, 0.3, 0.7):
        kept = sc.prune_filters(model, X, DSP(X, eps=eps)).report.layers
        convolution, linear = (kept[i].filters[1] for i in (0, 2))
        assert report.curve(torch.tensor([eps])) == [(pytest.approx(eps), convolution + linear)]  # type: ignore[arg-type]
    report = sc.prune_filters(classifier(), X, WHC(), fraction=0.5).report
    assert report.curve([-1.0]) == [(-1.0, len(report.scores))]
    assert "thresholds" not in str(report)


def test_the_curve_of_dsp_in_steps() -> None:
    model = sc.models.ResNet(1, 2, nf=4)
    x = torch.randn(4, 1, 50)
    once, often = (sc.prune_filters(model, x, DSP(x, eps=0.5), steps=n).report for n in (1, 3))
    kept = [int((report.scores > 0.5).sum()) for report in (once, often)]
    assert kept[1] < kept[0]  # more fell in the later steps
    low = [0.0, 1e-3]
    assert often.curve(low) == once.curve(low)  # and those of the first would be kept at these
    units = [sum(x.filters[1] for x in report.layers) for report in (once, often)]
    assert often.curve([0.5])[0][1] < once.curve([0.5])[0][1]
    assert units[1] < units[0]
