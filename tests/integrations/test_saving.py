"""Saving, copying and converting: the same outputs and the same pattern afterwards."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparseconv import KernelCSR, Region, SparseConv1d

X = torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(0))


def layer(seed: int = 0, **options: Any) -> SparseConv1d:
    torch.manual_seed(seed)
    made = SparseConv1d(4, 6, 5, **{"padding": (0, 4), "padding_mode": "replicate", **options})
    made.regions = (Region((0, 3), (0, 2)), Region((3, 6), (0, 5)))
    return made


def check_twin(twin: SparseConv1d, original: SparseConv1d) -> None:
    """Equal to the last bit, trainable, and independent."""
    assert type(twin) is type(original)
    assert twin.pattern == original.pattern
    assert twin.regions == original.regions
    assert twin(X).equal(original(X))
    before = original(X)
    twin(X).square().sum().backward()
    torch.optim.SGD(twin.parameters(), 0.1).step()
    assert not twin(X).equal(before)
    twin.set_pattern(KernelCSR.full(twin.pattern.shape))
    assert original(X).equal(before)
    assert twin.state_dict()["col_indices"].equal(twin.pattern.col_indices)


def through_cloudpickle(original: SparseConv1d) -> SparseConv1d:
    cloudpickle = pytest.importorskip("cloudpickle")
    double = lambda x: 2 * original(x)  # noqa: E731 (a closure is what pickle refuses)
    assert pickle.loads(cloudpickle.dumps(double))(X).equal(double(X))
    return pickle.loads(cloudpickle.dumps(original))


@pytest.mark.tool("copy.deepcopy", "works")
@pytest.mark.tool("pickle", "works")
@pytest.mark.tool("cloudpickle", "works")
@pytest.mark.tool("torch.load(weights_only=True) of a whole module", "refuses")
def test_copies(tmp_path: Path) -> None:
    original, file = layer(), tmp_path / "layer.pt"
    original(X).sum().backward()
    torch.save(original, file)
    check_twin(copy.deepcopy(original), original)
    check_twin(pickle.loads(pickle.dumps(original)), original)
    check_twin(through_cloudpickle(original), original)
    check_twin(torch.load(file, weights_only=False), original)
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        torch.load(file, weights_only=True)


@pytest.mark.tool("load_state_dict(assign=True)", "works")
@pytest.mark.tool("meta device, to_empty", "works", "then reset_parameters() or a state dict")
def test_meta_device() -> None:
    original = layer()
    with torch.device("meta"):
        twins = [layer(seed=1) for _ in range(3)]
        assert twins[0](X.to("meta")).shape == original(X).shape
    assert all(t.is_meta for t in twins[0].state_dict(keep_vars=True).values())
    state = copy.deepcopy(original.state_dict())
    twins[0].load_state_dict(state, assign=True)
    assert isinstance(twins[0].values, nn.Parameter)
    assert twins[0].values.data_ptr() == state["values"].data_ptr()
    twins[1].to_empty(device="cpu").load_state_dict(original.state_dict())
    for twin in twins[:2]:
        check_twin(twin.cpu(), original)
    empty = twins[2].to_empty(device="cpu")
    for buffer in empty.buffers():
        buffer.fill_(7)  # what fresh memory may hold
    with pytest.raises(RuntimeError, match=r"reset_parameters\(\)"):
        empty(X)
    empty.reset_parameters()
    assert empty(X).isfinite().all()
    assert empty.crow_indices.equal(empty.pattern.crow_indices)


@pytest.mark.tool("Module.to, half, double", "works")
@pytest.mark.tool("torch.utils.swap_tensors", "works")
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_conversions_and_loads_across_dtypes(
    dtype: torch.dtype, swap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With set_swap_module_params_on_conversion, parameters stay the same objects."""
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", swap)
    original = layer()
    twin = copy.deepcopy(original)
    parameter = twin.values
    twin.to("cpu", dtype)
    assert (twin.values is parameter) or not swap
    assert twin.values.equal(original.values.to(dtype))
    assert twin.pattern == original.pattern
    assert twin(X.to(dtype)).dtype == dtype
    back = layer(seed=1)
    back.load_state_dict(twin.state_dict())  # a checkpoint of another dtype is converted
    assert back.values.equal(twin.values.float())
    assert back.pattern == original.pattern
