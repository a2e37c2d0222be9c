"""The state of a DSTScheduler: resumed bit for bit, or refused with nothing changed."""

from __future__ import annotations

import copy
import io
import math
import re
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from dst_runs import batches, scheduled, snapshot, train_step, two_layers
from tiny import same
from torch import nn

from sparseconv import DSTScheduler, KernelCSR, Region, SparseConv1d

# --- saving ---


@pytest.mark.promise("P9")
@pytest.mark.parametrize("grow", ["random", "gradient", "static"])
def test_a_resumed_run_continues_bit_for_bit(grow: str) -> None:
    settings = {"update_every": 3, "end_step": 25, "grow": grow, "seed": 11}
    data = [x for x, _ in zip(batches(), range(30), strict=False)]
    for stop in (8, 9, 10):  # before, at and after an update; watching or not
        parts = scheduled(two_layers(), "Adam", **settings)
        for step, x in enumerate(data):
            if step == stop:
                file = io.BytesIO()
                torch.save([part.state_dict() for part in parts], file)
            train_step(*parts[:2], x)
            parts[2].step()
        file.seek(0)
        resumed = scheduled(two_layers(seed=1), "Adam", **settings)
        for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
        for x in data[stop:]:
            train_step(*resumed[:2], x)
            resumed[2].step()
        assert same([p.state_dict() for p in resumed], [p.state_dict() for p in parts])
        assert resumed[2].itop_rate() == parts[2].itop_rate()
        assert resumed[2].updates == (0 if grow == "static" else 8)


def test_a_saved_state_is_independent_of_the_running_scheduler() -> None:
    _, _, dst = scheduled()
    state = dst.state_dict()
    kept = copy.deepcopy(state)
    dst.step()
    assert same(state, kept)
    dst.load_state_dict(state)
    dst.step()
    assert same(state, kept)


def drop(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {k: v for k, v in state.items() if k != key}


def put(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {**state, key: value}


def edit(key: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {**state, key: change(state[key])}


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda state: None, ValueError, "expected a DSTScheduler state"),
        (lambda state: {"last_epoch": 3}, ValueError, r"but got \['last_epoch'\]"),
        (drop("generator"), ValueError, "expected a DSTScheduler state with keys"),
        (put("extra", 1), ValueError, "expected a DSTScheduler state with keys"),
        (put("shapes", {"0": (6, 2, 7)}), ValueError, "of another scheduler: expected shapes"),
        (
            edit("hyperparameters", lambda own: {**own, "update_every": 4}),
            ValueError,
            "expected hyperparameters .*'update_every': 1.* but got .*'update_every': 4",
        ),
        (put("step_count", -1), ValueError, "step_count"),
        (put("step_count", "3"), TypeError, "step_count must be an int"),
        (put("updates", 1.5), TypeError, "updates must be an int"),
        (put("updates", 2), ValueError, "expected updates <= step_count, but got 2 > 1"),
        (put("generator", torch.zeros(3)), ValueError, "state of a CPU torch.Generator"),
        (put("generator", None), ValueError, "state of a CPU torch.Generator"),
        (
            edit("ever_active", lambda own: {k: bits.to_sparse() for k, bits in own.items()}),
            ValueError,
            r"ever_active\['0'\] to be a uint8 tensor",
        ),
        (put("ever_active", {}), ValueError, r"ever_active\['0'\] to be a uint8 tensor"),
        (
            edit("ever_active", lambda own: {**own, "2": torch.zeros(3, dtype=torch.uint8)}),
            ValueError,
            r"ever_active\['2'\].*shape \[15\]",
        ),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(
    change: Callable[[dict[str, Any]], Any], error: type[Exception], message: str
) -> None:
    model, optimizer, dst = scheduled(None, "Adam")
    other = DSTScheduler(model, optimizer, update_every=1, end_step=9)
    other.step()
    before = snapshot(model, optimizer, dst)
    with pytest.raises(error, match=message):
        dst.load_state_dict(change(other.state_dict()))
    assert same(snapshot(model, optimizer, dst), before)
    dst.load_state_dict(other.state_dict())  # unchanged, it is taken
    assert same(dst.state_dict(), other.state_dict())


# --- refusals ---


def with_shared_values() -> nn.Module:
    model = nn.ModuleDict({"a": SparseConv1d(2, 2, 5), "b": SparseConv1d(2, 2, 5)})
    model["b"].values = model["a"].values
    return model


def with_regions(regions: Any) -> nn.Module:
    model = two_layers()
    model[2].regions = regions
    return model


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "DSN"}, TypeError, "model must be an nn.Module, but got str"),
        ({"optimizer": lambda m: None}, TypeError, "must be a torch.optim.Optimizer, but got None"),
        ({"model": nn.Conv1d(1, 1, 3)}, ValueError, "at least one SparseConv1d.*from_dense"),
        (
            {"optimizer": lambda m: torch.optim.SGD([*m[0].parameters(), m[2].bias], 0.1)},
            ValueError,
            "of layer '2'; construct it with model.parameters",
        ),
        ({"model": with_shared_values()}, ValueError, "'a' and 'b' share theirs"),
        (
            {"model": with_regions((Region((0, 4), (0, 6)),))},
            ValueError,
            "does not lie inside a weight of shape",
        ),
        ({"update_every": 0}, ValueError, "update_every"),
        ({"update_every": 2.5}, TypeError, "update_every must be an int"),
        ({"update_every": (5,)}, TypeError, r"update_every must be an int, but got \(5,\)"),
        ({"end_step": -3}, ValueError, "end_step"),
        ({"end_step": [10]}, TypeError, r"end_step must be an int, but got \[10\]"),
        ({"decay_steps": 0}, ValueError, "decay_steps"),
        ({"prune_fraction": 1.01}, ValueError, "prune_fraction=1.01"),
        ({"prune_fraction": math.nan}, ValueError, "prune_fraction=nan"),
        ({"prune_fraction": "a"}, TypeError, "prune_fraction must be a number, but got a str"),
        ({"prune_floor": None}, TypeError, "prune_floor must be a number"),
        ({"seed": "a"}, TypeError, "seed must be an int, but got 'a'"),
        ({"seed": None}, TypeError, "seed must be an int, but got None"),
        ({"seed": 2**64}, ValueError, r"seed must lie in \[-2\*\*63, 2\*\*64\)"),
        ({"seed": -(2**63) - 1}, ValueError, r"seed must lie in \[-2\*\*63, 2\*\*64\)"),
        ({"model": with_regions(((0, 4), (0, 5)))}, TypeError, "sequence of Region"),
        ({"model": with_regions(None)}, TypeError, "sequence of Region.* but got None"),
        ({"model": with_regions((Region((0, 4), (0, 2.5)),))}, TypeError, "sequence of Region"),
        ({"prune_floor": -0.1}, ValueError, "prune_floor=-0.1"),
        ({"prune_floor": 0.6}, ValueError, "prune_floor=0.6 and prune_fraction=0.5"),
        ({"grow": "rigl"}, ValueError, "grow must be one of 'random', 'gradient', 'static'"),
    ],
)
def test_wrong_arguments_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = change.get("model", two_layers())
    make = change.get("optimizer", lambda m: torch.optim.SGD(m.parameters(), 0.1))
    optimizer = make(model if isinstance(model, nn.Module) else two_layers())
    arguments = {"update_every": 1, "end_step": 9, "grow": "gradient", **change}
    arguments = {k: v for k, v in arguments.items() if k not in ("model", "optimizer")}
    with pytest.raises(error, match=message):
        DSTScheduler(model, optimizer, **arguments)
    if isinstance(model, nn.Module):
        assert not any(module._forward_hooks for module in model.modules())


def other_values(layer: SparseConv1d) -> None:
    layer.values = nn.Parameter(layer.values.detach().clone())


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: setattr(layer, "regions", (Region((0, 9), (0, 5)),)), "does not lie inside"),
        (other_values, "lacks those of layer '2'"),
        (
            lambda layer: layer.set_pattern(KernelCSR.full(layer.pattern.shape)),
            r"'exp_avg' of layer '2' .*\[120\].*\[36\].*new optimizer",
        ),
    ],
)
def test_an_update_that_fails_leaves_everything_as_it_was(
    change: Callable[[SparseConv1d], None], message: str
) -> None:
    """The second layer is at fault, after the first one's growth was drawn."""
    model, optimizer, dst = scheduled(None, "Adam")
    train_step(model, optimizer, next(batches()))
    good = model[2].regions
    change(model[2])
    before = snapshot(model, optimizer, dst)
    with pytest.raises(ValueError, match=message):
        dst.step()
    assert same(snapshot(model, optimizer, dst), before)
    if model[2].regions != good:
        model[2].regions = good
        assert dst.step()


def test_numpy_numbers_are_taken() -> None:
    model, optimizer, plain = scheduled(update_every=3, seed=4)
    three, nine, half = np.int64(3), np.int32(9), np.float64(0.5)
    settings = {"update_every": three, "end_step": nine, "prune_fraction": half}
    dst = DSTScheduler(model, optimizer, **settings, seed=np.int64(4))
    assert repr(dst) == repr(plain)
    dst.load_state_dict(plain.state_dict())


@pytest.mark.parametrize(
    ("place", "message"),
    [("shared", "are in shared memory"), ("inference", "made in torch.inference_mode()")],
)
def test_averages_that_could_not_follow_are_refused(place: str, message: str) -> None:
    model = two_layers()
    with torch.inference_mode(place == "inference"):
        ema = copy.deepcopy(model).requires_grad_(False)
    if place == "shared":
        ema.share_memory()
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises((NotImplementedError, RuntimeError), match=re.escape(message)):
        DSTScheduler(model, optimizer, update_every=1, end_step=9, averages=[ema])


def test_ctrl_c_waits_until_an_update_is_complete(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def run(model: nn.Module, interrupted: bool) -> Any:
        parts = scheduled(model, "Adam", update_every=1, end_step=9)
        train_step(*parts[:2], next(batches()))
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                parts[2].step()
        else:
            parts[2].step()
        return snapshot(*parts)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    wanted = run(two_layers(), interrupted=False)
    model = two_layers()
    first, adopt = model[0], model[0]._adopt

    def interrupt(pattern: KernelCSR) -> None:
        adopt(pattern)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(first, "_adopt", interrupt, raising=False)
    assert same(run(model, interrupted=True), wanted)


def test_itop_counts_patterns_that_others_have_set() -> None:
    model, _, dst = scheduled()
    layer, other = model[0], two_layers(seed=1)[0]
    ever = layer.pattern.to_mask() | other.pattern.to_mask()
    before, numel = dst.itop_rate(), sum(m.pattern.numel for m in model if hasattr(m, "pattern"))
    new = int(ever.sum()) - layer.pattern.nnz
    assert new
    layer.load_state_dict(other.state_dict())
    assert dst.itop_rate() == pytest.approx(before + new / numel, rel=1e-12)
