"""Nothing wrong is timed: whole networks, each of which learns the same, and baselines."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench import cases, networks, run, tables
from benchmarks.bench.baselines import Calls
from benchmarks.bench.cases import CASES, SUITES, WITHOUT_CASES, Problem, select
from benchmarks.bench.masked import MaskedDST, PremaskedConv1d, masked_copy
from benchmarks.bench.networks import TrainingStep
from benchmarks.bench.run import WrongResultError
from sparseconv import DSTScheduler, SparseConv1d
from sparseconv.measure import timing
from sparseconv.models import DSN, classifier
from sparseconv.nn import block

SECONDS = {"sparse": 2e-3, "masked_dense": 1e-2, "dense_best": 6e-3, "dense_compiled": 8e-3}
WAYS = {"jit": 2e-3, "channels_last jit": 1e-3}  # of running dense_best, before it is timed


def small(in_channels: int = 1, **options: Any) -> DSN:
    return DSN(in_channels, 2, **{"nf": 4, "kernel_size": 9, "depth": 2, **options})


@pytest.fixture(autouse=True)
def one_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LENGTHS", [10]), ("RECIPE", [(3, 7, 2)]), ("evolved", small)):
        monkeypatch.setattr(networks, name, value)


def measured(*modes: str, **settings: Any) -> list[networks.Row]:
    tasks = dict(networks.tasks([1], **settings))
    return [row for mode in modes for row in tasks[f"DSN {mode} L=10, 1 thread"]()]


@pytest.fixture
def fake_times(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every candidate runs once and took what ``SECONDS`` says; returns who was timed together."""
    timed: list[list[str]] = []

    def fake(calls: dict[str, Callable[[], object]], *, rounds: int, **_: Any) -> timing.Times:
        for call in calls.values():
            call()
        timed.append(list(calls))
        return {name: np.full(rounds, (SECONDS | WAYS).get(name, 1e-3)) for name in calls}

    monkeypatch.setattr(timing, "interleave", fake)
    return timed


def test_rows_of_every_mode(fake_times: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    # Instead of half a minute for each network: the eager one. TorchScript has its own test.
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    monkeypatch.setattr(networks, "scripted", lambda network, x: network)
    state = torch.get_rng_state()
    tasks = networks.tasks([1, 2], rounds=5)
    assert [name for name, _ in tasks[:2]] == [
        "DSN train L=10, 1 thread", "DSN train L=10, 2 threads",
    ]  # fmt: skip
    one_each = [task for name, task in tasks if "2 threads" not in name or "latency" in name]
    *rows, other = (row for task in one_each for row in task())
    assert [other[k] for k in ("mode", "batch", "length", "in_channels")] == ["train", 3, 7, 2]
    assert set(other["ratio"]) == {"masked_dense"}
    assert torch.equal(torch.get_rng_state(), state)
    assert [(row["mode"], row["threads"]) for row in rows] == [
        *((mode, 1) for mode in networks.MODES), ("latency", 2),
    ]  # fmt: skip
    for row in rows:
        update, trains = row["mode"] == "update", row["mode"] in ("train", "update", "blocks")
        assert (row["model"], row["absent"], row["rounds"]) == ("DSN", {}, 5)
        assert row["batch"] == (1 if row["mode"] == "latency" else networks.BATCH)
        assert (row["length"], row["in_channels"]) == (10, 1)
        assert row["ms"]["sparse"] == pytest.approx(2)
        assert row["ratio"]["masked_dense"] == pytest.approx([5, 5, 5])
        others = {"masked_dense", "plain_step"} if update else set(SECONDS)
        others |= {"float32"} if row["mode"] == "blocks" else set()
        assert set(row["ms"]) == {"sparse"} | others
        assert ("peak_bytes" in row) == trains
        fastest = None if update else "channels_last" if trains else "channels_last jit"
        assert row["settings"].get("dense_best") == fastest
    json.dumps(rows)
    shown = tables.table(rows, tables.NETWORK_COLUMNS).markdown()
    assert shown.count("5.00 [5.00, 5.00]") == len(rows)


# Nothing wrong is timed


@pytest.mark.parametrize(
    ("mode", "what"),
    [
        *itertools.product(("train", "inference"), ("outputs", "wgrad")),
        ("update", "gradient"),
    ],
)
def test_what_is_wrong_is_not_timed(
    mode: str, what: str, fake_times: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, together = run.public_calls, classifier.run_together

    def wrong(modules: Any, x: Tensor) -> Tensor:
        """Let each layer be right alone, but not what runs them in a row."""
        y = together(modules, x)
        if not any(isinstance(m, SparseConv1d) for m in nn.ModuleList(modules).modules()):
            return y
        return 1.01 * y if what == "outputs" else y + 0.1 * (y - y.detach())

    def wrong_calls(problem: Problem) -> Calls:
        right = calls(problem)
        return right | {"wgrad": lambda: 1.01 * right["wgrad"]()}

    if what == "wgrad":
        monkeypatch.setattr(run, "public_calls", wrong_calls)
    elif mode == "inference":
        monkeypatch.setattr(networks, "optimize_for_inference", lambda net: lambda x: net(x) + 1e-3)
    else:
        monkeypatch.setattr(classifier, "run_together", wrong)
    with pytest.raises(WrongResultError, match=f"{what}.*(is|are) wrong"):
        measured(mode, baselines=["masked_dense"])
    assert fake_times == []


# The dense side


@pytest.mark.parametrize("padding", ["right-replicate", "centred-zeros"])
def test_every_way_to_train_dense_learns_the_same(
    padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same gradients and masked weights, in memory of another order, and no kernel of ours."""
    monkeypatch.setattr(block, "_describe", lambda *_: pytest.fail("time for kernels of ours"))
    torch.manual_seed(0)
    model = small(3, padding=padding)
    X, y = torch.randn(4, 3, 20), torch.arange(4) % 2
    before = [p.clone() for p in model.parameters()]
    names = "masked_dense", "channels_last"
    plain, images = (TrainingStep(model, name, update_every=3) for name in names)
    for _ in range(3):
        for step in (plain, images):
            step(X, y)
        pairs = zip(plain.model.parameters(), images.model.parameters(), strict=True)
        for first, second in pairs:
            found = second.grad.view_as(first)
            torch.testing.assert_close(first.grad, found, rtol=1e-3, atol=1e-5)
    assert all(map(torch.equal, before, model.parameters()))
    layers = zip(masked_layers(plain.model), masked_layers(images.model), strict=True)
    for first, second in layers:
        assert torch.equal(first.mask, second.mask)
        assert (second.weight[~second.mask] == 0).all()
    for tensor in (second.weight, second.mask, second.weight.grad):
        assert tensor.unsqueeze(2).is_contiguous(memory_format=torch.channels_last)


# Masked dense: the same network, trained by the same rule

SCHEDULE = {"update_every": 2, "end_step": 100, "decay_steps": 80, "prune_floor": 0.001}


def masked_layers(model: nn.Module) -> list[PremaskedConv1d]:
    return [layer for layer in model.modules() if isinstance(layer, PremaskedConv1d)]


def test_it_moves_what_the_sparse_scheduler_moves() -> None:
    """Same weights, seed and schedule: the same patterns and values, also when it was resumed."""
    torch.manual_seed(0)
    model = small(2, nf=5, depth=3, backend="reference").double()
    X, y = torch.randn(8, 2, 20).double(), torch.arange(8) % 2
    twin = masked_copy(model)
    # Without optimizer state both follow the same trajectory; SGD without momentum has none.
    sparse_optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dense_optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    sparse = DSTScheduler(model, sparse_optimizer, seed=3, **SCHEDULE)
    dense = MaskedDST(twin, dense_optimizer, seed=3, **SCHEDULE)
    for i in range(12):
        if i == 5:
            state = dense.state_dict()
            dense = MaskedDST(twin, dense_optimizer, **SCHEDULE)
            dense.load_state_dict(state)
        for each, optimizer in ((model, sparse_optimizer), (twin, dense_optimizer)):
            optimizer.zero_grad()
            F.nll_loss(each(X), y).backward()
            optimizer.step()
        assert sparse.step() == dense.step()
        assert sparse.prune_fraction_now == pytest.approx(dense.prune_fraction_now, rel=1e-12)
        for ours, theirs in zip(model.sparse_layers(), masked_layers(twin), strict=True):
            assert torch.equal(ours.pattern.to_mask(), theirs.mask)
            torch.testing.assert_close(ours.dense_weight(), theirs.weight, rtol=1e-9, atol=1e-12)
    assert sparse.updates == 6


def test_every_suite_has_cases_and_every_name_is_one() -> None:
    assert {case.suite for case in CASES.values()} | {*WITHOUT_CASES} == set(SUITES)
    assert len(CASES) == len(list(cases._all()))
    assert all(case.is_valid for case in CASES.values())
    assert {case.suite for case in select(["batch", "dtype"])} == {"batch", "dtype"}
    assert [case.name for case in select(names=["packing"])] == ["packing"]
