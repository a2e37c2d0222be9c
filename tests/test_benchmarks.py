"""The benchmarks: statistics on fake clocks, cases, and no figure for a wrong kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import accuracy, demo, kernels, readme, step
from sparseconv import KernelCSR, SparseConv1d
from sparseconv.bench import timing
from sparseconv.bench.cases import CASES, Problem, layer_problem
from sparseconv.functional import Geometry
from sparseconv.models import DSN
from sparseconv.reference import conv1d_dense

Ops = SimpleNamespace


class FakeClock:
    """Time passes only in the calls that it hands out."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.now += seconds()

        return call


def dense_ops(**wrong: Callable[[Tensor], Tensor]) -> Ops:
    """The three computations by autograd on the dense path; ``wrong`` spoils some."""

    def fprop(x: Tensor, values: Tensor, bias: Any, pattern: KernelCSR, g: Geometry) -> Tensor:
        return conv1d_dense(x, values, pattern, bias, *g[1:])

    def dgrad(grad: Tensor, values: Tensor, pattern: KernelCSR, g: Geometry, length: int) -> Tensor:
        x = torch.zeros(grad.shape[0], pattern.shape[1] * g.groups, length, requires_grad=True)
        return torch.autograd.grad(fprop(x, values, None, pattern, g), x, grad)[0]

    def wgrad(grad: Tensor, x: Tensor, pattern: KernelCSR, g: Geometry) -> Tensor:
        values = torch.zeros(pattern.nnz, requires_grad=True)
        return torch.autograd.grad(fprop(x, values, None, pattern, g), values, grad)[0]

    right = {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}

    def spoil(name: str) -> Callable[..., Tensor]:
        return lambda *a: wrong[name](right[name](*a)) if name in wrong else right[name](*a)

    return Ops(**{name: spoil(name) for name in right})


@pytest.fixture(scope="module")
def small() -> Problem:
    torch.manual_seed(0)
    model = DSN(1, 2, nf=5, kernel_size=9, depth=2)
    return layer_problem(model.sparse_layers()[1], batch=3, length=20)


def test_interval_of_a_constant_and_of_noise() -> None:
    assert timing.interval([2.0] * 5) == (2.0, 2.0, 2.0)
    samples = np.random.default_rng(0).normal(10, 1, 200)
    median, low, high = timing.interval(samples)
    assert median == np.median(samples)
    assert low < median < high
    assert high - low < 1  # a median of 200 is known far better than one sample is
    assert timing.interval(samples) == (median, low, high)  # seeded
    with pytest.raises(ValueError, match="at least one sample"):
        timing.interval([])


def test_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [timing.interval(rng.exponential(1, 41), resamples=300) for _ in range(300)]
    covered = np.mean([low <= np.log(2) <= high for _, low, high in intervals])
    # Binomial(300, 0.95) leaves 0.90 ... 0.99 less than once in 1 000; the bootstrap of a median
    # is conservative, never far below.
    assert covered >= 0.90


def test_pairs_cancel_a_drifting_machine() -> None:
    """The machine slows down tenfold in the course of the run; the ratio stays."""
    clock = FakeClock()

    def slowdown() -> float:
        return 1 + len(clock.log) / 50

    calls = {
        "slow": clock.takes("slow", lambda: 0.3 * slowdown()),
        "fast": clock.takes("fast", lambda: 0.1 * slowdown()),
    }
    times = timing.interleave(calls, rounds=300, clock=clock)
    assert times["slow"][-1] > 10 * times["slow"][0]
    median, low, high = timing.ratio(times, "slow", "fast")
    assert 2.9 < low <= median <= high < 3.1


def test_every_round_runs_each_candidate_in_a_drawn_order() -> None:
    clock = FakeClock()
    calls = {name: clock.takes(name, lambda: 1.0) for name in "abc"}
    times = timing.interleave(calls, rounds=50, warmup=2, clock=clock)
    untimed = 3 * (2 + 1)  # the warm-up, and one call to see how often to repeat
    rounds = [tuple(clock.log[i : i + 3]) for i in range(untimed, len(clock.log), 3)]
    assert len(rounds) == 50
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) == 6  # every order occurred
    assert all((times[name] == 1.0).all() for name in "abc")


def test_short_calls_are_repeated_and_long_ones_are_not() -> None:
    clock = FakeClock()
    calls = {
        "short": clock.takes("short", lambda: 1e-4),
        "long": clock.takes("long", lambda: 1.0),
    }
    times = timing.interleave(calls, rounds=4, warmup=0, least_seconds=2e-3, clock=clock)
    assert clock.log.count("short") == 1 + 4 * 20
    assert clock.log.count("long") == 1 + 4
    np.testing.assert_allclose(times["short"], 1e-4)


def test_garbage_collection_is_as_it_was_even_after_an_error() -> None:
    import gc

    def fails() -> None:
        if not gc.isenabled():
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        timing.interleave({"fails": fails})
    assert gc.isenabled()


def test_machine_facts_are_complete() -> None:
    facts = timing.machine()
    assert {"cpu", "cores", "cpp", "torch", "python", "date"} <= set(facts)
    assert all(facts.values())
    assert facts["torch"] == torch.__version__


@pytest.mark.parametrize("name", CASES)
def test_every_case_builds(name: str) -> None:
    case = CASES[name]
    assert case.name == name
    x, values, grad, pattern, geometry = case.build()
    taken, again = case.build(), case.build()
    assert torch.equal(taken.x, again.x)
    assert torch.equal(taken.values, again.values)
    assert taken.pattern == again.pattern
    channels, nnz = {0: (1, 732), 1: (47, 34459)}[case.layer]
    assert pattern.shape == geometry.shape == (141, channels, 39)
    assert pattern.nnz == len(values) == nnz
    assert x.shape == (16, channels, case.length)
    assert grad.shape == (16, 141, geometry.output_length(case.length)) == (16, 141, case.length)


def test_evolved_patterns_use_every_tap_of_their_regions_and_prefixes_do_not() -> None:
    evolved, prefix = (CASES[f"dsn_{kind}_L24"].build().pattern for kind in ("evolved", "prefix"))
    for group, reach in enumerate((13, 26, 39)):
        rows = slice(47 * group, 47 * (group + 1))
        used = evolved.to_mask()[rows].any(0).any(0)
        assert used[:reach].all()
        assert not used[reach:].any()
        assert prefix.to_mask()[rows].any(0).any(0).sum() == -(-reach // 5)


def test_layer_problem_follows_the_layers_options() -> None:
    layer = SparseConv1d(4, 6, 5, 2, (1, 3), 2, 2, padding_mode="replicate")
    problem = layer_problem(layer, batch=2, length=17)
    assert problem.geometry == ((6, 2, 5), 2, (1, 3), 2, 2, "replicate")
    assert problem.grad.shape == layer(problem.x).shape


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_check_passes_right_kernels(small: Problem, mode: str) -> None:
    kernels.check(dense_ops(), small._replace(geometry=small.geometry._replace(padding_mode=mode)))


def _one_wrong(result: Tensor) -> Tensor:
    result = result.clone()
    result.view(-1)[-1] += 1e-3 * result.abs().max()
    return result


@pytest.mark.parametrize("name", kernels.COMPUTATIONS)
@pytest.mark.parametrize("fault", [_one_wrong, torch.zeros_like, lambda r: r * float("nan")])
def test_check_refuses_a_wrong_kernel(
    small: Problem, name: str, fault: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(kernels.WrongResultError, match=f"{name} is wrong"):
        kernels.check(dense_ops(**{name: fault}), small)


@pytest.mark.parametrize("name", kernels.COMPUTATIONS)
def test_no_figure_is_printed_for_a_wrong_kernel(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(kernels, "_ops", dense_ops(**{name: _one_wrong}))
    monkeypatch.setattr(kernels, "cpp_or_reason", lambda: "")
    monkeypatch.setattr(timing, "interleave", lambda *a, **k: pytest.fail("timed a wrong kernel"))
    out = tmp_path / "rows.json"
    cases = ["--cases", "dsn_prefix_L24", "--threads", "1"]
    assert kernels.main([*cases, "--out", str(out)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{name} is wrong" in shown.err
    assert not out.exists()


def test_kernel_rows_follow_from_the_measured_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    milliseconds = {"sparse": 2e-3, "dense": 1e-2}

    def fake(calls: dict[str, Callable[[], object]], *, rounds: int) -> timing.Times:
        for call in calls.values():
            call()
        return {name: np.full(rounds, milliseconds[name]) for name in calls}

    monkeypatch.setattr(timing, "interleave", fake)
    monkeypatch.setattr(kernels, "_ops", dense_ops())
    monkeypatch.setattr(kernels, "cpp_or_reason", lambda: "")
    out = tmp_path / "new" / "rows.json"
    cases = ["--cases", "dsn_evolved_L24", "--threads", "1"]
    assert kernels.main([*cases, "--rounds", "5", "--out", str(out)]) == 0
    saved = json.loads(out.read_text())
    assert saved["machine"]["torch"] == torch.__version__
    assert [row["computation"] for row in saved["rows"]] == list(kernels.COMPUTATIONS)
    for row in saved["rows"]:
        assert row["ratio"] == pytest.approx([5.0, 5.0, 5.0])
        assert row["sparse_gflops"] == pytest.approx(2e-9 * 34459 * 16 * 24 / 2e-3)
        assert row["dense_gflops"] == pytest.approx(2e-9 * 258453 * 16 * 24 / 1e-2)
    assert capsys.readouterr().out.count("5.00 [5.00, 5.00]") == 3


def test_dense_rival_computes_the_same(small: Problem) -> None:
    problem = small._replace(geometry=small.geometry._replace(padding=(4, 4), padding_mode="zeros"))
    sparse, dense = kernels.sparse_calls(dense_ops(), problem), kernels.dense_calls(problem)
    torch.testing.assert_close(dense["fprop"](), sparse["fprop"]())
    torch.testing.assert_close(dense["dgrad"](), sparse["dgrad"]())
    mask = problem.pattern.to_mask()
    torch.testing.assert_close(dense["wgrad"]()[mask], sparse["wgrad"]())


def test_steps_are_not_timed_with_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_ops", dense_ops(wgrad=_one_wrong))
    monkeypatch.setattr(timing, "interleave", lambda *a, **k: pytest.fail("timed a wrong kernel"))
    model = DSN(1, 2, nf=5, kernel_size=9, depth=2)
    with pytest.raises(kernels.WrongResultError, match="wgrad"):
        step.measure(model, torch.zeros(4, 1, 20), torch.arange(4) % 2)


def test_step_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_ops", dense_ops())
    torch.manual_seed(0)
    model = DSN(1, 2, nf=5, kernel_size=9, depth=2)
    before = [p.clone() for p in model.parameters()]
    X, y = torch.randn(4, 1, 20), torch.arange(4) % 2
    rows = step.measure(model, X, y, rounds=2)
    assert [row["step"] for row in rows] == ["plain", "updating"]
    assert step.table(rows).markdown().count("\n") == 3
    assert all(map(torch.equal, before, model.parameters()))  # copies were trained


def test_without_the_extension_the_demo_and_benchmarks_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from sparseconv import _backends

    monkeypatch.setattr(_backends, "extension", None)
    monkeypatch.setattr(_backends, "_missing_reason", "the C++ extension is not built (why)")
    out = tmp_path / "demo"
    for main in (demo.main, kernels.main, step.main):
        assert main(["--out", str(out)]) == 1
        shown = capsys.readouterr()
        assert "not built (why)" in shown.err
        assert shown.out == ""
    assert not out.exists()


def test_demo_layers_count_what_they_execute() -> None:
    layers = DSN(1, 2, nf=5, kernel_size=9, depth=2).sparse_layers()
    first, second = (
        demo.time_layer(layer, 3, 20, first=i == 0, rounds=1) for i, layer in enumerate(layers)
    )
    assert first["forward"]["flops"] == first["backward"]["flops"] == 2 * 60 * layers[0].pattern.nnz
    assert second["backward"]["flops"] == 2 * second["forward"]["flops"]
    assert second["forward"]["dense_flops"] == 2 * 60 * layers[1].pattern.numel


def test_accuracy_runs_once_and_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done: list[tuple[Any, ...]] = []

    def fake(*key: Any, progress: bool) -> dict[str, Any]:
        done.append(key)
        result = dict(zip(accuracy.KEY, key, strict=True))
        return result | {"accuracy": 0.9 + 0.01 * key[2], "train_seconds": 1.0}

    monkeypatch.setattr(accuracy, "run", fake)
    out = tmp_path / "new" / "accuracy.jsonl"
    common = ["--epochs", "7", "--out", str(out), "--datasets", "GunPoint", "ACSF1"]
    assert accuracy.main([*common, "--seeds", "0"]) == 0
    assert accuracy.main([*common, "--seeds", "0", "1", "--masked-dense", "GunPoint"]) == 0
    assert len(done) == len(set(done)) == 2 + 4
    assert len(accuracy.finished(out)) == 6
    text = capsys.readouterr().out
    assert "90.50 ± 0.71 (2)" in text
    assert "99.07" in text
    assert "91.60" in text


def test_published_figures_exist_for_every_set() -> None:
    runs = [
        {"dataset": name, "epochs": 1, "kind": "sparse", "accuracy": 1}
        for name in accuracy.SETTINGS
    ]
    assert len(accuracy.table(runs).rows) == 7


@pytest.mark.parametrize("kind", ["sparse", "masked dense"])
def test_accuracy_trains_both_kinds(kind: str) -> None:
    pytest.importorskip("aeon")
    result = accuracy.run("ItalyPowerDemand", kind, 0, 10, progress=False)
    assert 0.8 < result["accuracy"] <= 1  # half of the cases are of one class
    assert result["active_weights"] == 732 + 3 * 34459
    assert (result["itop_rate"] is None) == (kind == "masked dense")
    json.dumps(result)


def test_readme_shows_the_recorded_results() -> None:
    assert readme.main(["--check"]) == 0, "run python -m benchmarks.readme"
