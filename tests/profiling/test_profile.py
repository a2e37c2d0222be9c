"""``sc.profile``: what it counts, that it compares like with like, what it says and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from layers import OPTIONS
from nested import QUICK, X, nested
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparseconv import SparseConv1d
from sparseconv.measure import machine
from sparseconv.models import DSN
from sparseconv.ops import backends
from sparseconv.profiling import profile, profiler

PEAK = 50.0


@pytest.fixture(autouse=True)
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[str]]]:
    """A known peak instead of a measured one; the list says what was asked for."""
    asked = []

    def measure(counts: list[int], isas: list[str], dtypes: list[str]) -> list[dict[str, Any]]:
        asked.append((counts, dtypes))
        return [{"fma_gflops": PEAK}]

    monkeypatch.setattr("sparseconv.measure.peaks.measure", measure)
    return asked


def test_every_call_of_every_layer_is_found() -> None:
    found = profile(nested(), X, **QUICK)
    assert [(layer.name, layer.calls, layer.input_shape) for layer in found.layers] == [
        ("first", 1, (2, 3, 20)),
        ("inner.twice", 2, (2, 4, 20)),
        ("inner.shrink", 1, (2, 4, 20)),
        ("inner.shrink", 1, (2, 4, 18)),
    ]
    assert found.unreached == ("never",)
    first = found.layers[0]
    assert (first.output_shape, first.weight_shape) == ((2, 4, 20), (4, 3, 5))
    assert (first.nnz, first.density, first.dtype) == (30, 0.5, "float32")
    assert [(layer.dgrad, layer.wgrad) for layer in found.layers] == [(False, True)] + 3 * [
        (True, True)
    ]
    assert found.threads == torch.get_num_threads()


def test_flops_are_those_that_torch_counts() -> None:
    torch.manual_seed(0)
    backend = "auto" if backends.extension is not None else "reference"
    if backend == "reference":
        pytest.skip("the dense path executes dense FLOPs")
    layers = [SparseConv1d(3, 6, 5, padding=2, bias=False, density=0.3)]
    layers += [SparseConv1d(6, 4, 3, stride=2, bias=False), SparseConv1d(4, 4, 3, bias=False)]
    model = nn.Sequential(*layers)
    layers[2].values.requires_grad_(False)
    found = profile(model, X, **QUICK)
    with FlopCounterMode(display=False) as forward:
        y = model(X)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert found.totals["forward"].flops == forward.get_total_flops()
    both = forward.get_total_flops() + backward.get_total_flops()
    assert found.totals["step"].flops == both
    dense = nn.Sequential(*(layer.to_dense() for layer in layers))
    with FlopCounterMode(display=False) as counter:
        dense(X)
    assert found.totals["forward"].dense_flops == counter.get_total_flops()


def test_the_gradient_of_an_input_that_asks_for_one_is_counted() -> None:
    layer = SparseConv1d(3, 6, 5, bias=False)
    x = X.clone().requires_grad_()
    (record,) = profile(layer, x, **QUICK).layers
    assert (record.name, record.dgrad) == ("SparseConv1d", True)
    assert record.backward is not None
    assert record.backward.flops == 2 * record.forward.flops
    assert x.grad is None


@pytest.mark.parametrize("frozen", [False, True])
def test_inference_has_no_backward(frozen: bool) -> None:
    layer = SparseConv1d(3, 6, 5).requires_grad_(not frozen)
    found = profile(layer, X, backward=frozen, **QUICK)
    assert found.layers[0].backward is None
    assert found.totals.keys() == {"forward"}
    assert found.model.step_ms is None
    assert "wgrad" not in str(found)


def test_a_layer_of_which_only_the_bias_learns() -> None:
    layer = SparseConv1d(3, 6, 5)
    layer.values.requires_grad_(False)
    found = profile(layer, X, **QUICK)
    assert found.layers[0].backward is not None
    assert found.layers[0].backward.flops == 0
    assert "bias only" in str(found)


MORE = [
    {"padding": (0, 4), "padding_mode": "replicate"},
    {"padding": (3, 0)},
    {"padding": "same", "dilation": 3},
]


@pytest.mark.parametrize("options", OPTIONS + MORE)
def test_dense_is_the_same_function(options: dict[str, Any]) -> None:
    """Outputs and gradients; a rival that computed something else would prove nothing."""
    torch.manual_seed(0)
    layer = SparseConv1d(4, 6, 4, **options).double()
    x = torch.randn(2, 4, 30, dtype=torch.float64, requires_grad=True)
    results = []
    for weight, convolve in profiler._convolutions(layer).values():
        y = convolve(x, weight, layer.bias)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, layer.values])])
    torch.testing.assert_close(*results)


def times_of(**milliseconds: float) -> Any:
    """An ``interleave`` that measures nothing, but calls everything once."""

    def interleave(candidates: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        for call in candidates.values():
            call()
        rounds = np.linspace(0.99, 1.01, 9)
        found = {name: milliseconds[name.replace(" ", "_")] for name in candidates}
        return {name: 1e-3 * value * rounds for name, value in found.items()}

    return interleave


MODEL = {"forward": 8.0, "layers_forward": 4.0, "step": 10.0, "layers_step": 5.0}


@pytest.mark.parametrize(
    ("dense_forward", "dense_backward", "verdict"),
    [(3.0, 9.0, "keep sparse"), (0.5, 1.0, "dense is faster here"), (2.0, 1.0, "no clear")],
)
def test_verdict_and_shares(
    monkeypatch: pytest.MonkeyPatch, dense_forward: float, dense_backward: float, verdict: str
) -> None:
    fake = times_of(sparse_forward=1.0, sparse_backward=2.0, dense_forward=dense_forward,
                    dense_backward=dense_backward, **MODEL)  # fmt: skip
    monkeypatch.setattr(profiler, "interleave", fake)
    monkeypatch.setattr(profiler, "extension", SimpleNamespace(isa=lambda: "avx2"))
    found = profile(nn.Sequential(SparseConv1d(3, 6, 5, padding=2)), X)
    (layer,) = found.layers
    assert layer.backward is not None
    assert layer.verdict.startswith(verdict)
    assert layer.ratio.median == pytest.approx((dense_forward + dense_backward) / 3)
    assert layer.forward.ratio.median == pytest.approx(dense_forward)
    assert layer.forward.sparse_ms.median == pytest.approx(1.0)
    assert layer.forward.flops == 2 * 2 * 20 * layer.nnz
    assert layer.forward.share_of_peak == pytest.approx(layer.forward.flops / 1e-3 / 1e9 / PEAK)
    total = found.totals["step"]
    assert (total.sparse_ms, total.dense_ms) == pytest.approx((3, dense_forward + dense_backward))
    assert found.model.step_share is not None
    assert (found.model.forward_share.median, found.model.step_share.median) == (0.5, 0.5)
    text = str(found)
    assert f"{layer.verdict}: {layer.ratio}" in text
    assert "50% [50%, 50%] of the model's 10.00 ms" in text
    assert "FMA peak 50 GFLOP/s in float32" in text


def test_table_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    found = profile(nested(), X, **QUICK)
    text = str(found)
    assert "inner.twice (2x)" in text
    assert "4 → 4 x 3" in text
    assert "2 x 4 x 18" in text
    assert "50.00%" in text
    assert "dgrad + wgrad" in text
    assert "never reached by this input: never" in text
    assert machine.cpu_name() in text
    content = json.loads(json.dumps(found.to_dict()))
    row = content["layers"][1]
    assert (row["name"], row["calls"], row["verdict"]) == (
        "inner.twice",
        2,
        found.layers[1].verdict,
    )
    assert row["forward"]["ratio"] == list(found.layers[1].forward.ratio)
    assert content["totals"]["step"]["flops"] == found.totals["step"].flops
    twice = found.layers[1]
    assert found.totals["forward"].flops == sum(r.calls * r.forward.flops for r in found.layers)
    assert twice.calls == 2


@pytest.mark.parametrize("mode", ["no_grad", "inference", "autocast", "bfloat16", "float64"])
def test_modes_and_dtypes(mode: str, peaks: list[tuple[list[int], list[str]]]) -> None:
    model, x = DSN(3, 2, nf=2, kernel_size=5, depth=2), X
    contexts = {"no_grad": torch.no_grad(), "inference": torch.inference_mode(),
                "autocast": torch.autocast("cpu", torch.bfloat16)}  # fmt: skip
    if mode in ("bfloat16", "float64"):
        model, x = model.to(getattr(torch, mode)), x.to(getattr(torch, mode))
    with contexts.get(mode, torch.enable_grad()):
        found = profile(model, x.clone(), **QUICK)
        assert torch.is_inference_mode_enabled() == (mode == "inference")
    dtype = {"autocast": "bfloat16", "bfloat16": "bfloat16", "float64": "float64"}
    assert {layer.dtype for layer in found.layers} == {dtype.get(mode, "float32")}
    assert all(layer.backward for layer in found.layers)
    if backends.extension is not None:
        counted = "float64" if mode == "float64" else "float32"
        assert peaks == [([torch.get_num_threads()], [counted])]


def test_without_the_kernels_there_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "extension", None)
    found = profile(SparseConv1d(3, 4, 5, backend="reference"), X, **QUICK)
    assert found.layers[0].forward.share_of_peak is None
    assert found.fma_gflops == {}
    assert "FMA peak" not in str(found)


def test_a_layer_without_weights() -> None:
    found = profile(SparseConv1d(3, 4, 5, density=0.0), X, **QUICK)
    assert found.layers[0].forward.flops == 0
    assert "0.00%" in str(found)


def test_a_compiled_model() -> None:
    compiled = torch.compile(nn.Sequential(SparseConv1d(3, 4, 5), nn.ReLU()), backend="eager")
    compiled(X)
    found = profile(compiled, X, **QUICK)
    assert [layer.name for layer in found.layers] == ["0"]


class Never(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = SparseConv1d(3, 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("model", "input", "error", "message"),
    [
        (SparseConv1d, X, TypeError, "model must be an nn.Module, but got type"),
        (nn.Conv1d(3, 4, 5), X, ValueError, "Conv1d holds no SparseConv1d.*from_dense"),
        (SparseConv1d(3, 4, 5), [X], TypeError, "tuple of the model's arguments, but got list"),
        (SparseConv1d(3, 4, 5), X[:, :2], ValueError, r"\(2, 2, 20\).*expected.*3 channels"),
        (SparseConv1d(3, 4, 5), (X, X), ValueError, "failed on the input.*TypeError"),
        (SparseConv1d(3, 4, 5), X.double(), ValueError, "DtypeError.*should be the same"),
        (Never(), X, ValueError, r"none of the model's sparse layers \(conv\)"),
        (SparseConv1d(3, 4, 5, device="meta"), X, NotImplementedError, "on meta.*cpu"),
    ],
)
def test_refusals(model: Any, input: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        profile(model, input, **QUICK)


def test_too_few_rounds() -> None:
    with pytest.raises(ValueError, match=r"at least 6.*got 5"):
        profile(SparseConv1d(3, 4, 5), X, rounds=5)
    with pytest.raises(TypeError, match="rounds must be an int"):
        profile(SparseConv1d(3, 4, 5), X, rounds=6.5)  # type: ignore[arg-type]


def test_who_does_not_measure_does_not_import_it() -> None:
    code = (
        "import sys, sparseconv\n"
        "assert not [name for name in sys.modules if name.startswith('sparseconv.bench')]\n"
        "assert sparseconv.profile is sys.modules['sparseconv.profiling'].profile\n"
        "from sparseconv import profile\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
