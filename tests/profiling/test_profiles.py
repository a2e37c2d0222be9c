"""``sc.profile``: what it counts, that it compares like with like; the forms of all reports."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from engines import TWINS
from fake_clock import fake_clock
from model_state import everything
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sparseconv as sc
from sparseconv import SparseConv1d
from sparseconv.measure import machine
from sparseconv.measure.records import Report
from sparseconv.measure.table import Table
from sparseconv.ops import backends
from sparseconv.profiling import profile
from sparseconv.pruning import WHC


class Nested(nn.Module):
    """A layer used twice on one shape, another on two, one never; statistics, noise, writing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SparseConv1d(3, 4, 5, padding="same", bias=False, density=0.5)
        self.inner = nn.ModuleDict(
            {"twice": SparseConv1d(4, 4, 3, padding=1), "shrink": SparseConv1d(4, 4, 3, groups=2)}
        )
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.never = SparseConv1d(2, 2, 2)
        self.failing = False

    def forward(self, x: Tensor, scale: float | None = None) -> dict[str, Any]:
        y = self.drop(self.norm(self.first(x)))
        y = self.inner["twice"](self.inner["twice"](y))
        noise = random.random() + float(np.random.rand())
        y = self.inner["shrink"](input=y + noise)
        y = self.inner["shrink"](y)
        if scale is not None:
            x.mul_(scale)
        if self.failing:
            raise RuntimeError("the head is broken")
        return {"out": [y], "length": y.shape[2]}


def nested() -> Nested:
    torch.manual_seed(0)
    return Nested()


X = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    return fake_clock(monkeypatch)


def test_every_call_of_every_layer_is_found() -> None:
    found = profile(nested(), X)
    assert [(layer.name, layer.calls, layer.input_shape) for layer in found.layers] == [
        ("first", 1, (2, 3, 20)),
        ("inner.twice", 2, (2, 4, 20)),
        ("inner.shrink", 1, (2, 4, 20)),
        ("inner.shrink", 1, (2, 4, 18)),
    ]
    assert found.unreached == ("never",)
    first = found.layers[0]
    assert first.weight_shape == (4, 3, 5)
    assert (first.nnz, first.density, first.dtype) == (30, 0.5, "float32")
    assert [(layer.dgrad, layer.wgrad) for layer in found.layers] == [(False, True)] + 3 * [
        (True, True)
    ]
    assert found.machine["threads"] == str(torch.get_num_threads())
    for name, total in found.model.items():
        assert total.flops.after == sum(layer.flops[name].after for layer in found.layers)
    text = f"{found}\n{found.details()}"
    for words in (
        "inner.twice (2x)", "4 -> 4 x 3", "2 x 4 x 18", "50.00%", "training: dgrad + wgrad",
        "never reached by this input: never", machine.cpu_name(), "dense: F.conv1d",
    ):  # fmt: skip
        assert words in text
    content = found.to_dict()
    assert content["layers"][1]["times"]["training"]["speedup"] == [1.0, 1.0, 1.0]
    assert content["model"]["training"]["flops"] == list(found.model["training"].flops)


@pytest.mark.skipif(backends.extension is None, reason="the dense path executes dense FLOPs")
def test_flops_are_those_that_torch_counts() -> None:
    torch.manual_seed(0)
    layers = [SparseConv1d(3, 6, 5, padding=2, bias=False, density=0.3)]
    layers += [SparseConv1d(6, 4, 3, stride=2, bias=False), SparseConv1d(4, 4, 3, bias=False)]
    model = nn.Sequential(*layers)
    layers[2].values.requires_grad_(False)
    found = profile(model, X)
    with FlopCounterMode(display=False) as forward:
        y = model(X)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert found.model["inference"].flops.after == forward.get_total_flops()
    both = forward.get_total_flops() + backward.get_total_flops()
    assert found.model["training"].flops.after == both
    dense = nn.Sequential(*(layer.to_dense() for layer in layers))
    with FlopCounterMode(display=False) as counter:
        dense(X)
    assert found.model["inference"].flops.before == counter.get_total_flops()


class Frozen(nn.Module):
    """Runs a part without recording gradients, and returns what profile cannot see into."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.hidden = hidden
        self.first, self.second = SparseConv1d(3, 4, 5), SparseConv1d(4, 4, 5)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            x = self.first(x)
        y = self.second(x)
        return SimpleNamespace(y=y) if self.hidden else y


def test_a_layer_that_records_no_gradients_does_not_train() -> None:
    found = profile(Frozen(hidden=False), X)
    first, second = found.layers
    assert ("training" in first.times, first.wgrad, first.dgrad) == (False, False, False)
    assert (second.dgrad, second.wgrad) == (False, True)
    costs = first.flops["inference"].after + 2 * second.flops["inference"].after
    assert found.model["training"].flops.after == costs
    said = "training of the whole model was not measured"
    assert said not in " ".join(str(found).split())
    assert said in " ".join(str(profile(Frozen(hidden=True), X)).split())
    assert said not in str(profile(Frozen(hidden=True), X, training=False))


def test_the_reference_executes_all_weights() -> None:
    found = profile(SparseConv1d(3, 4, 5, density=0.5, backend="reference"), X)
    (layer,) = found.layers
    assert layer.flops["inference"].after == layer.flops["inference"].before
    assert layer.backend == "reference"
    assert "computed by the dense reference, not by the kernels: SparseConv1d" in str(found)
    assert "dense reference" not in str(profile(SparseConv1d(3, 4, 5), X))


def test_dense_is_what_the_layer_is_converted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an even kernel, "same" is another call than padding before, and takes other time."""
    layer = SparseConv1d(3, 6, 4, padding="same", density=0.5)
    seen: list[Any] = []
    real = F.conv1d
    monkeypatch.setattr(F, "conv1d", lambda *args: seen.append(args) or real(*args))
    profile(layer, X, training=False)
    assert all(call[4] == "same" for call in seen)
    assert torch.equal(seen[0][1], layer.dense_weight())


@pytest.mark.parametrize(
    ("dense_step", "verdict"),
    [
        (12.0, "sparse is faster"),
        (1.5, "dense is faster"),
        ([2.0, 4.0], "no clear difference"),
    ],
)
def test_verdict_and_shares(monkeypatch: pytest.MonkeyPatch, dense_step: Any, verdict: str) -> None:
    times = {
        "sparse inference": 1.0, "dense inference": 5.0,
        "sparse training": 3.0, "dense training": dense_step,
        "model inference": 8.0, "model training": 10.0,
    }  # fmt: skip
    fake_clock(monkeypatch, lambda name, _: times[name])
    found = profile(nn.Sequential(SparseConv1d(3, 6, 5, padding=2)), X)
    (layer,) = found.layers
    assert layer.verdict == verdict
    assert layer.speedup == layer.times["training"].speedup
    assert layer.times["inference"].speedup.median == pytest.approx(5)
    assert [times.after.median for times in layer.times.values()] == pytest.approx([1, 3])
    assert layer.flops["inference"].after == 2 * 2 * 20 * layer.nnz
    total = found.model["training"]
    assert total.sparse_ms == pytest.approx(3)
    assert total.dense_ms == layer.times["training"].before.median
    assert [times.share for times in found.model.values()] == pytest.approx([1 / 8, 3 / 10])
    text = " ".join(str(found).split())
    assert verdict in text
    assert "alone, they take 30% of the model's 10.00 ms" in text


def test_training_is_timed_where_gradients_are_off() -> None:
    model = SparseConv1d(3, 4, 5)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            found = profile(model, X.clone())
        assert "training" in found.layers[0].times


IN_UNITS: list[dict[str, Any]] = [
    {"block": 16}, {"block": 8, "density": 0.5}, {"density": 0.5}, {"groups": 2, "block": 8},
    {"groups": 4, "block": 4}, {"padding": 3000, "dilation": 3000},
]  # fmt: skip


def test_it_says_whether_blocks_compute_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECONV_CPU_ISA", TWINS["amx"])
    layers = [SparseConv1d(48, 48, 3, **{"padding": 1, **options}) for options in IN_UNITS]
    model, x = nn.Sequential(*layers), torch.randn(1, 48, 20)
    with torch.autocast("cpu", torch.bfloat16):
        found = profile(model, x, training=False, rounds=6)
    words = ["", "block_mask", "block_mask", "groups cut", "a group has fewer", "groups cut"]
    for layer, word in zip(found.layers, words, strict=True):
        assert layer.kernels == ("single weights" if word else "blocks"), layer.name
        assert word in layer.not_blocks
    text = " ".join(f"{found} {found.details()}".split())
    assert "with single weights, not with blocks: 1, 2; kernels of 16 x 16 channels have" in text
    assert "| kernels |" in text
    plain = profile(model, x, training=False, rounds=6)
    why = "blocks are computed only in bfloat16, or under torch.autocast to it"
    single = [("single weights", why) if "block" in options else ("", "") for options in IN_UNITS]
    assert [(layer.kernels, layer.not_blocks) for layer in plain.layers] == single
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        (layer,) = profile(layers[0], x, training=False, rounds=6).layers
    finally:
        torch.backends.mkldnn.conv.fp32_precision = "none"
    assert layer.kernels == "blocks"
    small = SparseConv1d(48, 8, 3, block=8).bfloat16()
    (layer,) = profile(small, x.bfloat16(), training=False, rounds=6).layers
    assert layer.not_blocks == "a group has fewer than 16 channels"
    monkeypatch.setenv("SPARSECONV_CPU_ISA", "baseline")
    (layer,) = profile(small, x.bfloat16(), training=False, rounds=6).layers
    assert (layer.kernels, layer.not_blocks) == (
        "single weights",
        "this CPU has neither AMX nor AVX-512 BF16",
    )


@pytest.mark.parametrize("given", [lambda y: (y, y), lambda y: y.detach()])
def test_what_a_forward_hook_returns_is_not_timed(given: Callable[[Tensor], Any]) -> None:
    layer = SparseConv1d(2, 4, 3, density=0.5)
    layer.register_forward_hook(lambda *call: given(call[-1]))
    (found,) = profile(layer, torch.randn(2, 2, 20), rounds=6).layers
    assert found.times.keys() == {"training", "inference"}


def test_a_compiled_model() -> None:
    compiled = torch.compile(nn.Sequential(SparseConv1d(3, 4, 5), nn.ReLU()), backend="eager")
    compiled(X)
    assert [layer.name for layer in profile(compiled, X).layers] == ["0"]
    layer = torch.compile(SparseConv1d(3, 4, 5), backend="eager")
    assert [layer.name for layer in profile(layer, X).layers] == ["SparseConv1d"]


@pytest.mark.promise("P8")
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = nested()
    model.inner.eval()
    model(X)["out"][0].sum().backward()
    model.failing = fails
    before, x = everything(model), X.clone()
    with pytest.raises(RuntimeError, match="the head is broken") if fails else nullcontext():
        profile(model, x)
        profile(model, (x, 3.0), training=False)  # writes into its input
    assert everything(model) == before
    assert torch.equal(x, X)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(3, 8, 5), nn.ReLU(), nn.Conv1d(8, 3, 5))


REPORTS: dict[str, Callable[[], Report]] = {
    "profile": lambda: profile(SparseConv1d(3, 8, 5), X),
    "convert": lambda: sc.convert(network(), layers=["0"]).report,
    "prune_filters": lambda: sc.prune_filters(network(), X, WHC(), fraction=0.5).report,
    "factorize": lambda: sc.factorize(network(), rank=1, method="svd").report,
}


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_has_all_forms(name: str, tmp_path: Path) -> None:
    report = REPORTS[name]()
    html = report._repr_html_()
    assert not any(other in html for other in ("src=", "href=", "@import", "url(", "<script"))
    assert report.save(tmp_path / "report.html").read_text() == html
    saved = json.loads(report.save(tmp_path / "report.json").read_text())
    assert saved == json.loads(json.dumps(report.to_dict()))
    table = report.table()
    assert max(map(len, str(report).splitlines())) <= 100
    assert len(table.header) <= 5
    assert all(cell in html for cell in report.details().header)
    for text in (str(report), html):
        assert all(cell in text for cell in table.header)
        assert all(row[0] in text for row in table.rows)
    long = Table(("layer", "ms"), [("module." * 20 + "la|st", "1.0")]).markdown(width=40)
    assert {len(line) for line in long.splitlines()} == {40}
    assert r"module.la\|st |" in long
    with pytest.raises(ValueError, match=r"\.html or \.json, but got"):
        report.save(tmp_path / "report.pdf")
