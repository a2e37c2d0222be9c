"""The pattern is what the two index buffers contain, and they do not change unnoticed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dst_runs import batches, two_layers
from torch import Tensor, nn

from sparseconv import KernelCSR, SparseConv1d

X = torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(0))
INDICES = ("crow_indices", "col_indices")


def make(seed: int = 0, nnz: int = 40) -> SparseConv1d:
    torch.manual_seed(seed)
    return SparseConv1d(4, 6, 5, pattern=KernelCSR.random((6, 4, 5), nnz))


def in_place(layer: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in layer.state_dict().items():
        tensor.copy_(state[name])


def unseen_by_torch(layer: nn.Module, state: dict[str, Tensor]) -> None:
    """As ``dist.broadcast`` and NumPy write: no version counts it."""
    for name, tensor in layer.state_dict().items():
        tensor.numpy()[...] = state[name].numpy()


def assigned(layer: nn.Module, state: dict[str, Tensor]) -> None:
    layer.load_state_dict({name: t.clone() for name, t in state.items()}, assign=True)


def one_by_one(layer: Any, state: dict[str, Tensor]) -> None:
    """As ``transformers`` does it."""
    for name, tensor in state.items():
        new: Any = tensor.clone()
        setattr(layer, name, new if name in INDICES else nn.Parameter(new))


def loaded(layer: nn.Module, state: dict[str, Tensor]) -> None:
    layer.load_state_dict(state)


IN_PLACE, OTHERS = [in_place, unseen_by_torch], [assigned, one_by_one, loaded]


@pytest.mark.tool("transformers: save_pretrained, from_pretrained", "works")
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("write", [*IN_PLACE, *OTHERS])
def test_who_writes_the_state_has_set_the_pattern(
    write: Callable[[nn.Module, dict[str, Tensor]], None], used: bool
) -> None:
    layer, other, third = make(), make(1), make(2, nnz=40 if write in IN_PLACE else 50)
    if used:
        layer(X).sum().backward()
    for source in (other, third):
        state = layer.state_dict()
        write(layer, source.state_dict())
        if write in IN_PLACE and (used or source is third):
            for use in (layer, copy.deepcopy, lambda layer: layer.pattern):
                with pytest.raises(RuntimeError, match=r"overwritten in place.* load_state_dict"):
                    use(X if use is layer else layer)
            layer.load_state_dict(state)
        assert write is not loaded or layer.values.grad is None
        assert layer(X).equal(source(X))
        assert layer.pattern == source.pattern
        assert layer.dense_weight().equal(source.dense_weight())
        twin = copy.deepcopy(layer)
        assert twin(X).equal(source(X))
    layer.set_pattern(KernelCSR.full((6, 4, 5)))
    assert layer.dense_weight().equal(third.dense_weight())


def test_the_values_of_one_pattern_and_the_indices_of_another() -> None:
    layer, other = make(), make(1, nnz=50)
    for name in INDICES:
        setattr(layer, name, other.state_dict()[name].clone())
    for call in (layer, nn.Sequential(layer, nn.ReLU()), lambda _: layer.dense_weight()):
        with pytest.raises(ValueError, match=r"values must have shape \(50,\).*\[40\]|\(40,\)"):
            call(X)


@pytest.mark.tool("torch.distributed.checkpoint into state_dict()", "works", "in place")
@pytest.mark.parametrize("empty", [False, True])
def test_checkpoints_in_place(empty: bool, tmp_path: Path) -> None:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    source, target = two_layers(), two_layers(seed=1)
    x = next(batches())
    with torch.random.fork_rng():
        dcp.save({"model": source.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
        if empty:
            target = target.to("meta").to_empty(device="cpu")
        else:
            target(x)
        state = {"model": {k: v.detach() for k, v in target.state_dict(keep_vars=True).items()}}
        dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    if not empty:
        target.load_state_dict(state["model"])
    assert target(x).equal(source(x))


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("col_indices", lambda t: t.fill_(99)),
        ("col_indices", lambda t: t.neg_()),
        ("col_indices", lambda t: t.copy_(t.flip(0))),
        ("crow_indices", lambda t: t.fill_(10**6)),
        ("crow_indices", lambda t: t.copy_(t.flip(0))),
        ("crow_indices", lambda t: t.add_(1)),
        ("col_indices", lambda t: t.resize_(len(t) - 1)),
    ],
)
def test_damaged_indices_reach_no_kernel(name: str, damage: Any) -> None:
    layer = make()
    good, wanted = copy.deepcopy(layer.state_dict()), layer(X)
    damage(getattr(layer, name))
    for use in (layer, lambda _: layer.pattern.nnz, lambda _: layer.set_pattern(make(1).pattern)):
        with pytest.raises(RuntimeError, match="indices of this layer were overwritten"):
            use(X)
    layer.load_state_dict(good)
    assert layer(X).equal(wanted)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_only_int32_tensors_are_indices(dtype: torch.dtype) -> None:
    layer = make()
    layer.col_indices = layer.col_indices.to(dtype)
    with pytest.raises(RuntimeError, match=r"not a pattern: col_indices must be .*int32"):
        layer(X)


def test_type_casts_and_inference_mode_keep_the_indices() -> None:
    layer, wanted = make(), make()(X).double()
    torch.testing.assert_close(layer.type(torch.float64)(X.double()), wanted)
    with torch.inference_mode():
        layer = make().double()
        torch.testing.assert_close(layer(X.double()), wanted)
    assert not any(buffer.is_inference() for buffer in layer.buffers())
