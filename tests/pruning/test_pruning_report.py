"""The report of ``sc.prune_filters``: figures that are those of the modules, in every form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_clock import fake_clock
from model_state import everything
from networks import MODELS, Drawn, classifier, data

import sparseconv as sc
from sparseconv.models.lite import hand_made_filters
from sparseconv.profiling.stopwatch import model_passes
from sparseconv.pruning import DSP, WHC, Criterion
from sparseconv.pruning.report import PruningReport

X, Y = data()


def report_of(name: str, criterion: Criterion) -> PruningReport:
    torch.manual_seed(0)
    return sc.prune_filters(MODELS[name](), torch.randn(2, 2, 40), criterion, ratio=0.5).report


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_modules(name: str) -> None:
    report = report_of(name, WHC())
    for i, model in enumerate((report.before, report.after)):
        assert report.parameters[i] == sum(p.numel() for p in model.parameters())
        # LITE's hand-made filters are functions on buffers, of each input channel.
        taps = sum(filter.shape[2] for filter in hand_made_filters())
        others = 40 * 2 * taps if name == "LITE" else 0
        assert report.macs[i] == others + sum(layer.macs[i] for layer in report.layers)
        for layer in report.layers:
            module: Any = model.get_submodule(layer.name)
            assert layer.kind == type(module).__name__
            assert layer.parameters[i] == sum(p.numel() for p in module.parameters())
            sizes = {"Linear": "out_features", "BatchNorm1d": "num_features"}
            assert layer.filters[i] == getattr(module, sizes.get(layer.kind, "out_channels"))
        covered = sum(layer.parameters[i] for layer in report.layers)
        assert covered == report.parameters[i]
    for layer in report.layers:
        assert len(set(layer.kept)) == layer.filters[1]
        assert set(layer.kept) <= set(range(layer.filters[0]))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["classifier", "DSN", "twice"])
def test_measured_times(name: str, backward: bool) -> None:
    layer = torch.nn.Conv1d(6, 6, 3, padding=1)
    twice = torch.nn.Sequential(torch.nn.Conv1d(2, 6, 1), layer, layer, torch.nn.Conv1d(6, 3, 1))
    model = {"classifier": classifier, "DSN": MODELS["DSN"], "twice": lambda: twice}[name]()
    x = torch.randn(2, 2, 12).to(next(model.parameters()))
    report = sc.prune_filters(model, x, Drawn(0, False), ratio=0.5).report
    states = [everything(report.before), everything(report.after)]
    timed = report.measure(rounds=6, least_seconds=1e-6, backward=backward)
    assert [everything(report.before), everything(report.after)] == states
    assert not report.times
    assert all(not layer.times for layer in report.layers)
    assert set(timed.times) == ({"inference", "training"} if backward else {"inference"})
    for times in (*timed.times.values(), *(layer.times["inference"] for layer in timed.layers)):
        for found in (times.before, times.after, times.ratio):
            assert 0 < found.low <= found.median <= found.high
    assert timed.machine["threads"] == str(torch.get_num_threads())
    assert timed.machine["torch"]


@pytest.mark.parametrize("equivalent", [False, True])
def test_copies_are_timed_with_compressors_merged(equivalent: bool) -> None:
    model, called = classifier(), set()

    def see(module: torch.nn.Module, *_: object) -> None:
        called.add(module)

    model[2].register_forward_hook(see)
    report = sc.prune_filters(model, X, WHC(), ratio=0.5, equivalent=equivalent).report
    called.clear()
    timed = report.measure(rounds=6, least_seconds=1e-6, backward=True)
    assert len(called) == 2
    assert not called & {report.before[2], report.after[2]}
    assert [layer.name for layer in timed.layers] == [layer.name for layer in report.layers]


def test_what_is_timed_has_the_shapes_that_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[torch.nn.Module] = []

    def watched(model: torch.nn.Module, *given: Any) -> Any:
        timed.append(model)
        return model_passes(model, *given)

    monkeypatch.setattr("sparseconv.pruning.report.model_passes", watched)
    report = sc.prune_filters(classifier(), X, WHC(), ratio=0.5, equivalent=True).report
    report.measure(rounds=6, least_seconds=1e-6)
    assert [sum(p.numel() for p in model.parameters()) for model in timed] == [*report.parameters]


def test_merging_nothing_gives_a_copy() -> None:
    pruned, report = sc.prune_filters(classifier(), X, WHC(), ratio=0, equivalent=True)
    merged = report.merge()
    own = {id(parameter) for parameter in pruned.parameters()}
    assert not own & {id(parameter) for parameter in merged.parameters()}


def test_ratios_are_before_by_after(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whole model: 12 ms before and 4 after; a layer takes 3 and 1.
    names: list[str] = []

    def milliseconds(name: str, turn: int) -> float:
        names.append(name)
        return (12 if turn == 4 else 3) / (3 if name.startswith("after") else 1)

    fake_clock(monkeypatch, milliseconds)
    model = classifier()
    report = sc.prune_filters(model, X, WHC(), ratio=0.5).report.measure(rounds=6)
    assert set(names) == {"before inference", "after inference"}
    whole = report.times["inference"]
    assert (whole.before.median, whole.after.median) == pytest.approx((12, 4))
    assert whole.ratio.median == pytest.approx(3)
    for layer in report.layers:
        assert layer.times["inference"].ratio.median == pytest.approx(3)


def test_the_curve_of_dsp() -> None:
    model = classifier(16)
    report = sc.prune_filters(model, X, DSP(X, 0.3)).report
    curve = report.curve()
    thresholds, counts = zip(*curve, strict=True)
    assert len(curve) == 49
    assert thresholds[0] == pytest.approx(1e-6)
    assert list(thresholds) == sorted(thresholds)
    assert list(counts) == sorted(counts, reverse=True)
    assert counts[-1] == 2  # of each layer one
    for eps in (0.0, 0.1, 0.3, 0.7):
        kept = sc.prune_filters(model, X, DSP(X, eps)).report.layers
        convolution, linear = (kept[i].filters[1] for i in (0, 2))
        assert report.curve([eps]) == [(eps, convolution + linear)]


def test_the_curve_of_dsp_in_steps() -> None:
    model = sc.models.ResNet(1, 2, nf=4)
    x = torch.randn(4, 1, 50)
    once, often = (sc.prune_filters(model, x, DSP(x, 0.5), steps=n).report for n in (1, 3))
    kept = [int((report.scores > 0.5).sum()) for report in (once, often)]
    assert kept[1] < kept[0]  # more fell in the later steps
    low = [0.0, 1e-3]
    assert often.curve(low) == once.curve(low)  # and those of the first would be kept at these
    units = [sum(x.filters[1] for x in report.layers) for report in (once, often)]
    assert often.curve([0.5])[0][1] < once.curve([0.5])[0][1]
    assert units[1] < units[0]


def test_the_curve_is_printed() -> None:
    report = sc.prune_filters(classifier(16), X, DSP(X, 0.3)).report
    (_, first), (_, last) = report.curve(torch.tensor([1e-6, 1]))  # type: ignore[arg-type]
    assert f"other thresholds: {first} at 1e-06, " in str(report)
    assert f", {last} at 1\n" in str(report) + "\n"
    report = report_of("ResNet", WHC())
    with pytest.raises(ValueError, match=r"WHC\(\) has no threshold, and so no curve"):
        report.curve([0.5])
    assert "thresholds" not in str(report)


@pytest.mark.parametrize("name", ["LITE", "ResNet"])
def test_layers_without_compressors_are_reported(name: str) -> None:
    x = torch.randn(2, 2, 40)
    report = sc.prune_filters(MODELS[name](), x, WHC(), ratio=0.5, equivalent=True).report
    assert bool(report.unpaired) == ("without compressors" in str(report)) == (name == "LITE")
    assert ", ".join(report.unpaired) in str(report)
