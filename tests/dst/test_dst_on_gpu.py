"""Updates that stay on a GPU: the numbers of a CPU, and nothing that the CPU waits for.

Without a GPU, tensors of the CPU take the place of its tensors: what an update made counts
as unread until it is asked for.
"""

from __future__ import annotations

import copy
import io
import itertools
from typing import Any

import pytest
import torch
from dst_runs import batches, in_blocks, scheduled, snapshot, sparse_layers, train_step, two_layers
from tiny import same
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from sparseconv import DSTScheduler, KernelCSR
from sparseconv.dst import scheduler, update

MODELS = {"single weights": two_layers, "blocks": in_blocks}
WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "bincount")


class NeverWaits(TorchDispatchMode):
    """Refuses sizes and numbers that depend on content, but those just drawn: on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn: list[Tensor] = []
        self._lifted: list[Tensor] = []  # tensors that torch made of a number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        parts = [x for x in args if isinstance(x, (list, tuple)) and name.startswith("index")]
        waits = any(x.dtype == torch.bool for part in parts for x in part if x is not None)
        waits |= name.startswith(WAITS) or (
            str(func) == "aten.repeat_interleave.Tensor" and not (kwargs or {}).get("output_size")
        )
        if waits and not any(args[0].data_ptr() == x.data_ptr() for x in self._drawn):
            raise AssertionError(f"{func} waits for the device")
        if name == "copy_" and any(args[1] is tensor for tensor in self._lifted):
            raise AssertionError("a number is copied from the CPU, which waits for the device")
        result = func(*args, **(kwargs or {}))
        if name == "lift_fresh":
            self._lifted.append(result)
        if name == "randint":
            self._drawn.append(result)
        return result


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for module in (update, scheduler):
        monkeypatch.setattr(module, "stays_on_gpu", lambda tensor: True)
    return monkeypatch


def trained(build: Any, grow: str, updates: int = 6) -> tuple[Any, ...]:
    model = build()
    average = AveragedModel(model)
    _, optimizer, dst = scheduled(model, "Adam", grow=grow, averages=average)
    for x, _ in zip(batches(), range(updates), strict=False):
        train_step(model, optimizer, x)
        average.update_parameters(model)
        assert dst.step()
    return model, average, optimizer, dst


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_they_end_as_those_of_a_cpu(build: Any, grow: str, request: Any) -> None:
    def everything() -> Any:
        model, average, optimizer, dst = trained(build, grow)
        return snapshot(model, optimizer, dst), average.state_dict(), dst.itop_rate()

    on_cpu = everything()
    request.getfixturevalue("on_gpu")
    assert same(everything(), on_cpu)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_the_cpu_waits_for_none(build: Any, grow: str, on_gpu: pytest.MonkeyPatch) -> None:
    model, _, optimizer, dst = trained(build, grow)
    held = [[layer.pattern for layer in sparse_layers(model)]]
    for seed in (2**20, 0):
        train_step(model, optimizer, next(batches(seed=seed)))
        assert all(pattern.only_on_gpu for pattern in held[-1])
        with on_gpu.context() as patch, NeverWaits():
            patch.setattr(KernelCSR, "_on_cpu", lambda self: pytest.fail("it was read"))
            assert dst.step()
        held.append([layer.pattern for layer in sparse_layers(model)])
    for patterns in zip(*held, strict=True):
        assert all(a != b for a, b in itertools.pairwise(patterns))
    with NeverWaits(), pytest.raises(AssertionError, match="waits"):
        held[0][0].to_mask().nonzero()


def test_an_infinite_gradient_or_none_moves_nothing(on_gpu: pytest.MonkeyPatch) -> None:
    for bad in (torch.inf, torch.nan, 0.0):
        model, _, optimizer, dst = trained(two_layers, "gradient", 2)
        train_step(model, optimizer, next(batches()))
        patterns = [layer.pattern for layer in sparse_layers(model)]
        kept = snapshot(model, optimizer)
        for layer in sparse_layers(model):
            if bad == 0:
                layer.dense_probe.grad.zero_()
        sparse_layers(model)[0].dense_probe.grad[0, 0, 0] = bad
        dst.step()
        assert [layer.pattern for layer in sparse_layers(model)] == patterns, bad
        assert same(snapshot(model, optimizer), kept)


def test_copies_and_checkpoints_of_what_was_not_read(on_gpu: pytest.MonkeyPatch) -> None:
    model, _, optimizer, dst = trained(two_layers, "random", 3)
    twin, file = two_layers(), io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), dst.state_dict()), file)
    file.seek(0)
    of_model, of_optimizer, of_dst = torch.load(file)
    twin.load_state_dict(of_model)
    _, its_optimizer, its_dst = scheduled(twin, "Adam")
    its_optimizer.load_state_dict(of_optimizer)
    its_dst.load_state_dict(of_dst)
    copied, copied_optimizer, copied_dst = copy.deepcopy((model, optimizer, dst))
    del dst
    runs = [(twin, its_optimizer, its_dst), (copied, copied_optimizer, copied_dst)]
    for run in runs:
        for x in (next(batches(seed=7)), next(batches(seed=8))):
            train_step(*run[:2], x)
            assert run[2].step()
    assert same(snapshot(*runs[0]), snapshot(*runs[1]))


@pytest.mark.promise("P5")
def test_what_is_no_pattern_is_refused_when_it_is_read() -> None:
    good = KernelCSR.random((4, 3, 5), 20)
    for damage in (lambda crow, col: col.add_(9), lambda crow, col: crow.flip(0)):
        crow, col = (array.clone() for array in good.indices_where_stored())
        damaged = damage(crow, col)
        arrays = (crow, damaged) if damaged.shape == col.shape else (damaged, col)
        pattern = KernelCSR.of_arrays(*arrays, good.shape, good.block, checked=False)
        assert pattern.nnz == 20
        with pytest.raises(ValueError, match=r"row 0|crow_indices must"):
            pattern.to_mask()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch sees no CUDA device")
@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_on_a_gpu_no_update_synchronises(grow: str) -> None:
    model: nn.Module = two_layers().cuda()
    optimizer = torch.optim.Adam(model.parameters())
    dst = DSTScheduler(model, optimizer, update_every=1, end_step=9, grow=grow)
    for x, turn in zip(batches(), range(6), strict=False):
        train_step(model, optimizer, x.cuda())
        torch.cuda.set_sync_debug_mode("error" if turn else "default")  # the first loads kernels
        try:
            assert dst.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
