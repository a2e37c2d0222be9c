"""SparseConv1d saves what it computes with, and loads a layer completely or not at all."""

from __future__ import annotations

import copy
import functools
import io
import pickle

import pytest
import torch
from dst_runs import batches, scheduled, two_layers
from model_state import everything
from torch import nn
from torch.nn.utils import prune

from sparseconv import KernelCSR, SparseConv1d
from sparseconv.nn.state import NAMES


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def bad_states() -> dict[str, tuple[dict[str, object], str]]:
    good = SparseConv1d(4, 6, 5, density=0.5).state_dict()
    dense = nn.Conv1d(4, 6, 5).state_dict()

    def without(name):
        return {key: tensor for key, tensor in good.items() if key != name}

    unsorted = good["col_indices"].flip(0)
    return {
        "no values": (without("values"), "expected values, crow_indices and col_indices"),
        "no bias": (without("bias"), "with a bias, but got"),
        "no indices": (without("crow_indices"), r"got \['bias', 'col_indices', 'values'\]"),
        "extra": (good | {"scale": torch.ones(1)}, "'scale'.* completely or not"),
        "both": (good | dense, "'weight'.* completely or not"),
        "values too short": (good | {"values": good["values"][1:]}, "size mismatch for values"),
        "bias too short": (good | {"bias": torch.ones(5)}, "size mismatch for bias"),
        "unsorted": (good | {"col_indices": unsorted}, r"row \d+ .*ascend"),
        "averaged": (good | {"crow_indices": good["crow_indices"].float()}, "torch.int32"),
        "int values": (good | {"values": good["values"].int()}, "must have one of the dtypes"),
        "no tensor": (good | {"values": [1.0]}, "must be a tensor"),
        "meta": ({k: t.to("meta") for k, t in good.items()}, "must be a dense tensor"),
        "sparse weight": (dense | {"weight": dense["weight"].to_sparse()}, "weight must be a de"),
        "other weight": (dense | {"weight": torch.ones(6, 4, 4)}, "size mismatch for weight"),
        "other mask": (dense | {"weight_mask": torch.ones(6, 4, 4)}, "size mismatch for weight"),
        "soft mask": (dense | {"weight_mask": 0.5 * torch.ones(6, 4, 5)}, "zeros and ones"),
        "orig alone": ({"weight_orig": dense["weight"], "bias": dense["bias"]}, "weight_mask"),
    }


@pytest.mark.promise("P5")
@pytest.mark.parametrize("name", bad_states())
def test_refused_load_changes_nothing(name):
    state, message = bad_states()[name]
    model = nn.Sequential(nn.ReLU(), SparseConv1d(4, 6, 5))
    model(torch.randn(2, 4, 30)).sum().backward()
    before = everything(model[1])
    with pytest.raises(RuntimeError, match=f"1: .*{message}"):
        model.load_state_dict({f"1.{k}": v for k, v in state.items()}, strict=False)
    assert everything(model[1]) == before


def test_load_dense_weight():
    conv = nn.Conv1d(4, 6, 5)
    mask = torch.rand(6, 4, 5) < 0.3
    with torch.no_grad():
        conv.weight.mul_(mask)
    layer = SparseConv1d(4, 6, 5)
    layer.load_state_dict(conv.state_dict())
    assert layer.pattern == KernelCSR.from_mask(mask)
    wider = mask | (torch.rand(6, 4, 5) < 0.3)
    layer.load_state_dict(conv.state_dict() | {"weight_mask": wider.float()})
    assert layer.pattern == KernelCSR.from_mask(wider)
    prune.random_unstructured(conv, "weight", 0.7)
    layer.load_state_dict(conv.state_dict())
    assert layer.dense_weight().equal(conv.weight)
    assert layer.pattern.nnz == 36


@pytest.mark.promise("P5")
@pytest.mark.parametrize("shape", [(4, 6, 9), (4, 6, 3), (12, 2, 5), (2, 12, 5)])
def test_the_state_of_another_shape_is_refused(shape):
    """Some would fit by the number of kernels and the range of the taps."""
    n_in, n_out, taps = shape

    def made(*sizes: int) -> nn.ModuleDict:
        return nn.ModuleDict({"conv": SparseConv1d(*sizes, bias=False)})

    state = saved(made(n_in, n_out, taps).state_dict())
    model = made(4, 6, 5)
    before = everything(model["conv"])
    with pytest.raises(RuntimeError, match=r"conv: size mismatch: .*\(6, 4, 5\), but got the"):
        model.load_state_dict(state)
    assert everything(model["conv"]) == before
    kept = made(4, 6, 5).state_dict()
    for fits in (kept, dict(kept), copy.deepcopy(kept)):  # a dict has no metadata
        model.load_state_dict(fits)
    model["conv"].to_dense().load_state_dict(nn.Conv1d(4, 6, 5, bias=False).state_dict())


class WithMore(SparseConv1d):
    """A subclass with a parameter, a buffer, a child and other state."""

    def __init__(self) -> None:
        super().__init__(2, 3, 5)
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("scale", torch.ones(2))
        self.extra = nn.Linear(2, 2)
        self.calls = 0

    def get_extra_state(self):
        return torch.tensor(self.calls)

    def set_extra_state(self, state):
        self.calls = int(state)


def pruned(pattern: KernelCSR | None = None) -> SparseConv1d:
    layer = SparseConv1d(2, 3, 5, pattern=pattern)
    prune.random_unstructured(layer, "values", 2)
    return layer


def parametrized() -> SparseConv1d:
    layer = SparseConv1d(2, 3, 5)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Tanh())
    return layer


@pytest.mark.parametrize("make", [WithMore, pruned, parametrized])
def test_a_layer_with_more_loads_its_own_state(make):
    torch.manual_seed(0)
    layer, twin = make(), make()
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert set(state) == set(twin.state_dict())
    if make is pruned:  # it keeps its pattern
        make = functools.partial(pruned, layer.pattern)
        twin = make()
        wrong = state | {"crow_indices": state["crow_indices"].flip(0)}
        with pytest.raises(
            RuntimeError, match="crow_indices must match the layer's current pattern"
        ):
            twin.load_state_dict(wrong)
    twin.load_state_dict(state)
    for name, tensor in twin.state_dict().items():
        assert tensor.equal(state[name]), name
    assert twin(x := torch.randn(1, 2, 9)).equal(layer(x))
    report = twin.load_state_dict({k: t for k, t in state.items() if k not in NAMES}, strict=False)
    assert set(report.missing_keys) == state.keys() & set(NAMES)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*values"):
        twin.load_state_dict({})
    with pytest.raises(RuntimeError, match="foo"):
        twin.load_state_dict(state | {"foo": torch.ones(1)})
    holder = nn.Sequential(make())
    holder.load_state_dict({f"0.{name}": tensor for name, tensor in state.items()})
    assert holder[0](x).equal(layer(x))


def test_hooks_rename_entries_before_they_are_read():
    source, target = (SparseConv1d(2, 3, 5, density=0.2) for _ in range(2))
    calls = []

    def rename(layer, state_dict, prefix, *rest):
        calls.append(layer)
        state_dict[f"{prefix}values"] = state_dict.pop(f"{prefix}w")

    target.register_load_state_dict_pre_hook(rename)
    state = source.state_dict()
    state["w"] = state.pop("values")
    for _ in range(2):
        target.load_state_dict(state)
    assert calls == [target] * 2
    assert target.dense_weight().equal(source.dense_weight())


# Ways to keep a state dict; of the first ones the tensors are the network's own.
KEPT = {
    "as it is": lambda model: model.state_dict(),
    "detached": lambda model: {k: t.detach() for k, t in model.state_dict().items()},
    "inference": torch.inference_mode()(lambda model: model.state_dict()),
    "cloned": lambda model: {k: t.clone() for k, t in model.state_dict().items()},
    "deepcopied": lambda model: copy.deepcopy(model.state_dict()),
    "saved": lambda model: saved(model.state_dict()),
}
COPIES = ("cloned", "deepcopied", "saved")


def moves(model, optimizer, dst):
    for x, _ in zip(batches(), range(5), strict=False):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        dst.step()


def fewer(model, *_):
    for layer in (model[0], model[2]):
        layer.set_pattern(KernelCSR.random(layer.pattern.shape, 9))


CHANGES = {
    "moves": moves,
    "another number": fewer,
    "a load": lambda model, *_: model.load_state_dict(two_layers(seed=3).state_dict()),
}


@pytest.mark.tool("torch.save, torch.load(weights_only=True) of a state dict", "works")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kept", KEPT)
def test_a_state_dict_is_a_network_that_was_or_is(kept, change):
    model, optimizer, dst = scheduled(None, "Adam")
    x = next(batches(seed=5))
    best, then = KEPT[kept](model), model(x)
    CHANGES[change](model, optimizer, dst)
    model.state_dict()  # for a checkpoint in between
    last, copies = model(x), [two_layers(seed=7), two_layers(seed=8)]
    # If nnz has changed, the network has left the memory that the state dict shares.
    wanted = then if kept in COPIES or change == "another number" else last
    copies[1].load_state_dict(saved(best))
    for each in (copies[0], model):
        each.load_state_dict(best)
    assert all(each(x).equal(wanted) for each in (*copies, model))


@pytest.mark.parametrize("sever", ["assign", "double"])
def test_a_state_dict_whose_values_the_network_left_keeps_its_positions(sever):
    model, x = two_layers(), next(batches(seed=5))
    size = len(pickle.dumps(model))
    best, then = model.state_dict(), model(x)
    assert len(pickle.dumps(model)) == size, "what state dicts share is not saved with the model"
    if sever == "assign":
        model.load_state_dict(two_layers(seed=3).state_dict(), assign=True)
    else:
        model.double().float()
    fewer(model)
    model.load_state_dict(best)
    assert model(x).equal(then)


@pytest.mark.parametrize("leave", [nn.Module.double, nn.Module.half])
def test_a_state_dict_of_another_dtype_keeps_its_positions(leave):
    layer = SparseConv1d(4, 4, 5, density=0.3)
    state, before = layer.state_dict(), copy.deepcopy(layer)
    leave(layer)
    layer.set_pattern(KernelCSR.random(layer.pattern.shape, layer.pattern.nnz))
    twin = SparseConv1d(4, 4, 5, density=0.3)
    twin.load_state_dict(state)
    assert twin.dense_weight().equal(before.dense_weight())
