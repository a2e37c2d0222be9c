"""Which layers ``sc.convert`` makes sparse, on what grounds, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_clock import FakeClock, fake_clock
from torch import Tensor, nn
from torch.nn.utils import prune

import sparseconv as sc
from benchmarks import readme, recording
from sparseconv import SparseConv1d
from sparseconv.conversion.converter import MAX_DENSITY
from sparseconv.profiling import Verdict, stopwatch

X = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Kernels of 9 samples that win, of 7 that lose, of 5 that do neither; one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.wins = nn.Conv1d(3, 4, 9)
        self.loses = nn.Conv1d(4, 4, 7)
        self.neither = nn.Conv1d(4, 4, 5)
        self.never = nn.Conv1d(4, 4, 9)
        self.whole = nn.Conv1d(4, 2, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(self.neither(self.loses(self.wins(x))))


def network() -> Network:
    torch.manual_seed(0)
    model = Network()
    for name in ("wins", "loses", "neither", "never"):
        prune.l1_unstructured(model.get_submodule(name), "weight", 0.9)
    return model


# Milliseconds dense of the layers that are measured, in the model's order; sparse take one.
DENSE_MS = [[3.0, 4.0], [0.5, 0.6], [0.5, 2.0]]


def set_clock(monkeypatch: pytest.MonkeyPatch, dense_ms: list[list[float]]) -> list[set[str]]:
    return fake_clock(
        monkeypatch, lambda name, turn: dense_ms[turn] if name.startswith("dense") else 1.0
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    return set_clock(monkeypatch, DENSE_MS)


def verdicts(report: Any) -> dict[str, tuple[bool, str]]:
    return {layer.name: (layer.sparse, layer.verdict) for layer in report.layers}


def test_sparse_is_what_was_measured_faster(clock: list[set[str]]) -> None:
    model = network()
    converted, report = sc.convert(model, example_input=X)
    assert verdicts(report) == {
        "wins": (True, Verdict.SPARSE),
        "loses": (False, Verdict.DENSE),
        "neither": (False, Verdict.UNCLEAR),
        "never": (False, Verdict.UNREACHED),
        "whole": (False, Verdict.UNPRUNED),
    }
    assert [isinstance(m, SparseConv1d) for m in converted.children()] == [True] + 4 * [False]
    wins = report.layers[0]
    assert (wins.calls, wins.density, wins.weight_shape) == (1, 11 / 108, (4, 3, 9))
    assert (wins.times["training"].after.median, wins.times["training"].before.median) == (1.0, 3.5)
    assert "3.50" in report.details().rows[0]  # the speedup; milliseconds have three decimals
    assert report.layers[3].speedup is None
    assert clock == 3 * [{"sparse training", "dense training"}]
    text = str(report)
    assert "1 of 5 layers are now sparse" in text
    assert "sparse is faster" in text
    assert f"dense: {Verdict.UNCLEAR}" in text
    assert "1 of 3 intervals contain 1: these verdicts may differ" in text
    assert "pruning in one step may reduce considerably" in text
    assert "verdicts are based on training times" in text
    clock.clear()
    _, report = sc.convert(model, example_input=X, training=False)
    assert all(name.endswith(" inference") for asked in clock for name in asked)
    assert "verdicts are based on inference times" in str(report)


@pytest.mark.parametrize("dense_ms", [3.0, 0.5])
def test_unpruned_layers_are_measured_if_asked(
    dense_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    clock = set_clock(monkeypatch, [*DENSE_MS, [dense_ms]])
    converted, report = sc.convert(model, example_input=X, unpruned=True)
    assert len(clock) == 4  # the layers that are reached
    found = verdicts(report)
    assert found["wins"] == (True, Verdict.SPARSE)
    assert found["never"] == (False, Verdict.UNREACHED)
    assert found["whole"] == (dense_ms > 1, Verdict.SPARSE if dense_ms > 1 else Verdict.DENSE)
    if dense_ms > 1:
        assert sc.to_dense(converted).whole.weight.equal(model.whole.weight)


def test_you_may_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = set_clock(monkeypatch, DENSE_MS[1:])
    converted, report = sc.convert(network(), example_input=X, layers=["loses", "never", "whole"])
    found = verdicts(report)
    assert found["loses"] == found["never"] == found["whole"] == (True, Verdict.NAMED)
    assert found["wins"] == found["neither"] == (False, Verdict.NOT_NAMED)
    assert [layer.calls for layer in report.layers] == [0, 1, 0, 0, 1]
    assert report.layers[3].reason == "named in layers; the input never reaches it"
    assert report.layers[1].speedup is not None
    assert report.layers[1].speedup.high < 1
    assert isinstance(converted.whole, SparseConv1d)
    clock.clear()
    _, report = sc.convert(network(), layers=["never"])
    assert not clock
    assert not any(layer.calls for layer in report.layers)


def test_nothing_known_means_by_density(clock: list[set[str]]) -> None:
    model = network()
    prune.remove(model.loses, "weight")
    model.loses.weight.data.view(-1)[:50] = 1.0  # 112 weights
    _, report = sc.convert(model)
    assert not clock
    found = verdicts(report)
    assert found["wins"] == (True, Verdict.FEW)
    assert found["loses"] == (False, Verdict.MANY)
    assert found["whole"] == (False, Verdict.UNPRUNED)
    assert "nor was it checked that the model runs the sparse layers: with an" in str(report)
    _, report = sc.convert(model, max_density=0.7)
    assert verdicts(report)["loses"][0]
    _, report = sc.convert(model, max_density=0.0)
    assert not any(layer.sparse for layer in report.layers)
    nn.utils.vector_to_parameters(torch.zeros(999), model.parameters())
    assert "\n5 layers: the limit is 70 %" in str(sc.convert(model, max_density=0.7).report)


def test_of_what_is_made_sparse_unasked_none_was_slower_than_dense() -> None:
    rows = recording.read(readme.RESULTS / "bench.json")["rows"]
    made = (row for row in rows if row["density"] <= MAX_DENSITY and row["dtype"] != "bfloat16")
    ratios = [row["ratio"]["conv1d"][0] for row in made if "conv1d" in row["ratio"]]
    assert min(ratios) >= 1


def test_bfloat16_on_a_cpu_is_not_made_sparse_unasked() -> None:
    model = prune.l1_unstructured(nn.Conv1d(3, 4, 9).bfloat16(), "weight", 0.9)
    (layer,) = sc.convert(model).report.layers
    assert (layer.sparse, layer.verdict) == (False, Verdict.BFLOAT16)
    (layer,) = sc.convert(model, max_density=0.125).report.layers
    assert (layer.sparse, layer.notes) == (True, ("the limit is 12.5 %",))


def test_a_layer_called_on_several_shapes_is_measured_with_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_clock(monkeypatch, lambda name, _: 9.0 if name.startswith("dense") else 4.0)
    shapes: list[int] = []
    real = F.conv1d
    monkeypatch.setattr(F, "conv1d", lambda x, *a: shapes.append(x.shape[2]) or real(x, *a))

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = prune.l1_unstructured(nn.Conv1d(3, 3, 3), "weight", 0.9)

        def forward(self, x: Tensor) -> Tensor:
            short = torch.no_grad()(self.conv)(x[..., :9])
            return self.conv(x).sum() + self.conv(x).sum() + short.sum()

    (layer,) = sc.convert(Shared(), example_input=X, training=False).report.layers
    assert shapes.count(40) == 2 * shapes.count(9) > 0
    assert (layer.calls, layer.sparse) == (3, True)
    assert layer.flops["inference"].after == 2 * layer.nnz * len(X) * (2 * 38 + 7)
    (layer,) = sc.convert(Shared(), example_input=X).report.layers
    assert layer.flops["training"].after == 2 * layer.nnz * len(X) * (4 * 38 + 7)


def test_it_really_measures() -> None:
    """Long kernels, one weight in a hundred: sparse wins on every machine, by far."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(16, 32, 65), nn.ReLU())
    prune.l1_unstructured(model[0], "weight", 0.99)
    converted, report = sc.convert(model, example_input=torch.randn(4, 16, 300), rounds=10)
    assert isinstance(converted[0], SparseConv1d), report
    assert report.layers[0].speedup is not None
    assert report.layers[0].speedup.median > 2, report


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_a_layer_cut_by_hand_leaves_the_others_sparse(kind: Any) -> None:
    """Its attributes are those of the whole layer, of which torch's call reads none."""
    model = nn.Sequential(kind(3, 8, 9), nn.Conv1d(8, 4, 9), nn.Conv1d(4, 4, 9))
    for conv in model:
        conv.weight.data[:, :, 1:] = 0
    dim = 1 if model[0].transposed else 0
    model[0].weight = nn.Parameter(model[0].weight.narrow(dim, 0, 5))
    model[0].bias = nn.Parameter(model[0].bias[:5])
    model[1].weight = nn.Parameter(model[1].weight[:, :5])
    converted, report = sc.convert(model)
    assert [layer.sparse for layer in report.layers] == [False, False, True]
    assert "its weight is (4, 5, 9), but its attributes state (4, 8, 9)" in report.layers[1].reason
    torch.testing.assert_close(converted(X), model(X))
    with pytest.raises(ValueError, match="layer '1' cannot be converted: its weight is "):
        sc.convert(model, layers=["1"])


def twins(count: int) -> nn.Sequential:
    """Layers of one shape and density, with active weights at different places."""
    model = nn.Sequential(*(nn.Conv1d(3, 3, 9, padding=4) for _ in range(count)))
    for conv in model:
        prune.random_unstructured(conv, "weight", 0.9)
    return model


def test_equal_layers_are_timed_once_and_get_the_same_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = set_clock(monkeypatch, [[3.0], [0.5]])
    _, report = sc.convert(twins(5), example_input=X)
    # the first layer's input needs no gradient
    assert [layer.verdict for layer in report.layers] == [Verdict.SPARSE] + 4 * [Verdict.DENSE]
    assert len(clock) == 2
    names = [layer.name for layer in report.layers]
    assert names == list("01234")
    assert len({layer.times["training"] for layer in report.layers[1:]}) == 1


@pytest.mark.parametrize(
    ("ratios", "rounds", "verdict"),
    [
        ([3.0], 6, Verdict.SPARSE),
        ([0.3], 6, Verdict.DENSE),
        ([1.04, 0.97], 6, Verdict.UNCLEAR),  # about the same
        ([0.8] + 5 * [2.5], 12, Verdict.SPARSE),  # noise that more rounds overcome
        ([0.5, 2.0, 2.0, 2.0], 24, Verdict.SPARSE),
        ([0.5, 2.0], 48, Verdict.UNCLEAR),  # a bounded number
    ],
)
def test_rounds_are_added_while_the_verdict_is_unclear(
    ratios: list[float], rounds: int, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = stopwatch.interleave, []

    def interleave(candidates: Any, **options: Any) -> Any:
        clock = FakeClock()
        draws = itertools.chain([1.0, 1.0], itertools.cycle(ratios))  # two calls are not timed
        lasts = {"sparse training": lambda: 1.0, "dense training": lambda: next(draws)}
        calls = {name: clock.takes(name, lasts[name]) for name in candidates}
        times = real(calls, **options | {"clock": clock, "least_seconds": 0.0})
        taken.append(len(times["dense training"]))
        return times

    monkeypatch.setattr(stopwatch, "interleave", interleave)
    (layer,) = sc.convert(twins(1), example_input=X).report.layers
    assert (taken, layer.verdict) == ([rounds], verdict)


@pytest.mark.parametrize("shape", [(64, 64, 9), (48, 144, 39), (32, 48, 5), (20, 36, 5)])
@pytest.mark.parametrize("block", [1, 16])
def test_a_mask_of_a_fifth_is_a_fifth(shape: tuple[int, int, int], block: int) -> None:
    """Whatever the rounding to whole weights, or to blocks of which the last are smaller."""
    c_in, c_out, taps = shape
    conv = nn.Conv1d(c_in, c_out, taps)
    prune.custom_from_mask(conv, "weight", sc.block_mask(conv.weight, 0.2, block=block))
    sparse, report = sc.convert(nn.Sequential(conv), block=block)
    assert report.layers[0].verdict is Verdict.FEW
    assert sparse[0].pattern.block == (block, block)
    some = sparse[0].pattern.units()
    above = (some.nnz - 1) / some.numel
    assert (
        not sc.convert(nn.Sequential(conv), block=block, max_density=above).report.layers[0].sparse
    )


def test_layers_keep_blocks_that_are_asked_for() -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 9), nn.Conv1d(8, 12, 5), nn.Conv1d(12, 8, 5))
    for conv, block in ((model[0], (4, 3)), (model[1], (4, 4))):
        mask = sc.block_mask(conv.weight, 0.2, block=block)
        prune.custom_from_mask(conv, "weight", mask)
    prune.l1_unstructured(model[2], "weight", 0.9)
    converted, report = sc.convert(model, block=4, max_density=0.25)
    assert [layer.pattern.block for layer in converted] == [(1, 1), (4, 4), (1, 1)]
    notes = [layer.notes[0] for layer in report.layers]
    assert notes[0].startswith("with single weights: a block of 4 x 4 channels is larger than")
    assert notes[1] == "in blocks of 4 x 4 channels"
    assert notes[2].startswith("with single weights: the kernels of a block of 4 x 4 channels must")
    for dense, sparse in zip(model, converted, strict=True):
        assert sparse.dense_weight().equal(dense.weight)
    unasked, report = sc.convert(model, max_density=0.25)
    assert [layer.pattern.block for layer in unasked] == 3 * [(1, 1)]
    assert not any("block" in layer.reason for layer in report.layers)
