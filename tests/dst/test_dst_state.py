"""The state of a DSTScheduler: resumed bit for bit, or refused with nothing changed."""

from __future__ import annotations

import copy
import io
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dst_runs import (
    batches,
    in_blocks,
    scheduled,
    snapshot,
    sparse_layers,
    train_step,
    two_layers,
)
from tiny import same
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from sparseconv import KernelCSR, Region, SparseConv1d

# --- saving ---


@pytest.mark.promise("P9")
@pytest.mark.tool("Optimizer.state_dict", "works", "over changes of the pattern")
@pytest.mark.parametrize("make", [two_layers, in_blocks])
@pytest.mark.parametrize("grow", ["random", "gradient", "static"])
def test_a_resumed_run_continues_bit_for_bit(grow: str, make: Callable[..., nn.Sequential]) -> None:
    settings = {"update_every": 3, "end_step": 25, "grow": grow, "seed": 11}
    data = [x for x, _ in zip(batches(), range(30), strict=False)]
    for stop in (8, 9, 10):  # before, at and after an update; watching or not
        parts = scheduled(make(), "Adam", **settings)
        for step, x in enumerate(data):
            if step == stop:
                file = io.BytesIO()
                torch.save([part.state_dict() for part in parts], file)
            train_step(*parts[:2], x)
            parts[2].step()
        file.seek(0)
        resumed = scheduled(make(seed=1), "Adam", **settings)
        for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
        for x in data[stop:]:
            train_step(*resumed[:2], x)
            resumed[2].step()
        assert same([p.state_dict() for p in resumed], [p.state_dict() for p in parts])
        assert resumed[2].itop_rate() == parts[2].itop_rate()
        assert resumed[2].updates == (0 if grow == "static" else 8)


def test_a_saved_state_is_independent_of_the_running_scheduler() -> None:
    model, optimizer, dst = scheduled()
    held = [p.detach().clone() for p in model.parameters()]
    optimizer.register_step_post_hook(lambda *_: held)  # it may keep what is of one step
    state = dst.state_dict()
    kept = copy.deepcopy(state)
    dst.step()
    assert same(state, kept)
    dst.load_state_dict(state)
    dst.step()
    assert same(state, kept)


FULL = KernelCSR.full((4, 6, 5))


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer, _: setattr(layer, "regions", (Region((0, 9), (0, 5)),)), "not lie inside"),
        (
            lambda layer, copied: [each.set_pattern(FULL) for each in (layer, copied)],
            r"'exp_avg'\] of '2.values' .*\[120\].*\[36\].*new optimizer",
        ),
        (lambda _, copied: copied.set_pattern(FULL), "start a new average"),
    ],
)
def test_an_update_that_fails_leaves_everything_as_it_was(
    change: Callable[[SparseConv1d, SparseConv1d], None], message: str
) -> None:
    """The second layer is at fault, after the first one's growth was drawn."""
    model = two_layers()
    average = AveragedModel(model)
    _, optimizer, dst = scheduled(model, "Adam", averages=[average])
    for updates in range(2):  # what an update has found in order is checked again
        train_step(model, optimizer, next(batches()))
        assert updates or dst.step()
    good = model[2].regions
    change(model[2], average.module[2])
    before = snapshot(model, optimizer, dst), copy.deepcopy(average.state_dict())
    with pytest.raises(ValueError, match=message):
        dst.step()
    assert same((snapshot(model, optimizer, dst), average.state_dict()), before)
    if model[2].regions != good:
        model[2].regions = good
        assert dst.step()


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
    first, adoption = model[0], model[0]._adoption

    def interrupted(pattern: KernelCSR) -> Callable[[], None]:
        adopt = adoption(pattern)
        return lambda: (adopt(), signal.raise_signal(signal.SIGINT))[0]

    monkeypatch.setattr(first, "_adoption", interrupted, raising=False)
    assert same(run(model, interrupted=True), wanted)


def test_regions_changed_in_place_are_checked_again() -> None:
    layer = SparseConv1d(4, 16, 9, density=0.4)
    regions = [Region((0, 16), (0, 9))]
    layer.regions = regions  # type: ignore[assignment]
    _, optimizer, dst = scheduled(layer, "Adam", end_step=99)
    train_step(layer, optimizer, torch.randn(2, 4, 20))
    assert dst.step()
    for wrong in ([Region((0, 10**7), (0, 9))], [*regions, Region((0, 8), (0, 9))],
                  [Region((0, 16), (0, 40))], [Region((-4, 16), (0, 9))]):  # fmt: skip
        kept = copy.deepcopy((layer.pattern, layer.state_dict()))
        layer.regions[:] = wrong  # type: ignore[index]
        with pytest.raises(ValueError, match=r"does not lie inside|must be disjoint"):
            dst.step()
        assert same((layer.pattern, layer.state_dict()), kept)
        layer.regions[:] = regions  # type: ignore[index]
    layer.regions[:] = [([0, 8], [0, 9]), ([8, 8], [0, 9])]  # type: ignore[index]
    assert dst.step()


# --- errors in the middle of an update ---


class OutOfMemory(TorchDispatchMode):
    """Let the ``at``-th operation that needs memory fail."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        if any(value.alias_info is None and str(value.type) == "Tensor" for value in returns):
            if self.left == 0:
                raise torch.OutOfMemoryError
            self.left -= 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_an_update_without_enough_memory_changes_nothing(grow: str) -> None:
    model, optimizer, dst = scheduled(optimizer="Adam", grow=grow)
    train_step(model, optimizer, next(batches()))
    for layer in sparse_layers(model):  # a copy gets new buffers, which need memory
        layer._memory = 0
    before, failed = snapshot(model, optimizer, dst), 0
    while True:
        mode = OutOfMemory(failed)
        try:
            with mode:
                assert dst.step()
            break
        except torch.OutOfMemoryError:
            assert same(snapshot(model, optimizer, dst), before), failed
            failed += 1
    assert failed > 40
