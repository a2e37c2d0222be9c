"""What ``prune_filters``, its criteria and ``keep_filters`` refuse."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refusals, refuses
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import sparseconv as sc
from sparseconv.pruning import DSP, WHC, Criterion, Evolutionary, Jacobian, Magnitude, keep_filters

torch.manual_seed(0)
X, Y = torch.randn(6, 2, 12), torch.arange(6) % 3
HOLE = X.where(X[0, 0, 0] != X, torch.nan)


def network(*middle: nn.Module) -> nn.Sequential:
    """``"0"`` has eight filters, then comes ``"1"``, if something is given, ``"2"`` reads them."""
    layers = [nn.Conv1d(2, 8, 3), *(middle or [nn.ReLU()]), nn.Conv1d(8, 3, 10)]
    return nn.Sequential(*layers, nn.Flatten(), nn.LogSoftmax(1))


def sgd(model: nn.Module) -> Any:
    return torch.optim.SGD(model.parameters(), 0.1)


def call(
    model: nn.Module | None = None, x: Any = X, criterion: Any = None, **options: Any
) -> Callable[[], Any]:
    """Prune half of the filters, unless told otherwise."""
    free = isinstance(criterion, Criterion) and criterion.threshold is not None
    limits = {} if free or options.keys() & {"fraction", "target_macs"} else {"fraction": 0.5}
    whole, given = model or network(), criterion or WHC()
    return lambda: sc.prune_filters(whole, x, given, **(limits | options))


class OneShort(WHC):
    """A criterion that forgets a unit."""

    def scores(self, *arguments: Any) -> Tensor:
        return super().scores(*arguments)[1:]


class Function(nn.Module):
    """Calls a function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def broken() -> nn.Module:
    """A model with a weight that is NaN."""
    model = network()
    with torch.no_grad():
        next(model.parameters())[0, 0, 0] = torch.nan
    return model


def shared() -> nn.Module:
    model = nn.Sequential(nn.Conv1d(2, 8, 1), nn.Conv1d(8, 8, 1), nn.Conv1d(8, 8, 1))
    model[2].weight = model[1].weight
    return model


def alone(x: Tensor) -> Tensor:
    """Raise while operations are watched."""
    if torch._C._len_torch_function_stack():
        raise OSError("used")
    return x


def listed() -> nn.Module:
    model = network()
    model.order = [*model]
    return model


COUNT = itertools.count(1)


def returning(form: Callable[[Tensor], Any]) -> nn.Module:
    return nn.Sequential(network(), Function(form))


def adafactor() -> dict[str, Any]:
    model = network()
    optimizer = torch.optim.Adafactor(model.parameters())
    model(X).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


test_arguments = refusals(
    (call(fraction=None), ValueError, "got neither"),
    (call(fraction=0.5, target_macs=5), ValueError, "got both"),
    (call(fraction=1), ValueError, "fraction must lie in [0, 1), but got 1"),
    (call(target_macs=3), ValueError, "the cost with one filter in each layer, but got 3"),
    (call(steps=0), ValueError, "steps must be at least 1, but got 0"),
    (call(ignore=["0", "no"]), ValueError, "names from model.named_modules(), but got 'no'"),
    (call(ignore="0"), ValueError, "Sequential has no filters that can be removed"),
    (call(criterion="whc"), TypeError, "for example WHC(), but got 'whc'; create one with WHC()"),
    (call(criterion=WHC), TypeError, "; create one with WHC()"),
    (call(criterion=OneShort()), ValueError, "OneShort() must return a score for each of 8 units"),
    (call(criterion=0.5), TypeError, "criterion must be a Criterion from sparseconv"),
    (call(criterion=DSP(X), fraction=0.5), ValueError, "decides how many filters to remove"),
    (call(x=X.tolist()), TypeError, "example_input must be a tensor"),
    (call(x=X[:, :1]), RuntimeError, "input[6, 1, 12] to have 2 channels, but got 1 channels"),
    (call(nn.Sequential(network()[0], nn.Flatten(), nn.Linear(80, 2)), X[0]), RuntimeError,
     "shape (2, 12): in 2 (Linear): mat1 and mat2"),
    (call(x=X[0]), ValueError, "0: it must receive a batch of series (N, C, L), but got (2, 12)"),
    (lambda: keep_filters("resnet", X, {}), TypeError, "model must be an nn.Module"),
    (call(optimizer=sgd(network())), ValueError, "a parameter that does not belong to the model"),
    (call(optimizer=sgd(network()), equivalent=True), ValueError, "do not pass optimizer, but"),
    (call(listed(), fraction=0.5, equivalent=True), ValueError, "referenced by Sequential.order"),
    (call(**adafactor()), ValueError, "'row_var'] of '0.weight' must have the parameter's shape"),
)  # fmt: skip

test_models = refusals(
    (call(shared()), ValueError, "1: it shares a parameter with '2'"),
    (call(torch.compile(network(), backend="eager")), ValueError, "prune its ._orig_mod"),
    (call(torch.jit.trace(network(), X), (X, Y)), ValueError,
     "but the model is a TorchScript TopLevelTracedModule; prune the model before torch.jit"),
    (call(network(prune.l1_unstructured(nn.Conv1d(8, 8, 1), "weight", 2))), ValueError,
     "1: its 'weight' is computed from other parameters; first undo this (torch.nn.utils.prune"),
    (call(nn.Sequential(nn.Conv1d(2, 8, 3), nn.Linear(10, 4))), ValueError,
     "1: its input has channels in dimension 1, but it reads them in dimension 2"),
    (call(network(Function(alone))), NotImplementedError,
     "the model runs, but its channels cannot be followed in 1 (Function): OSError: used; remov"),
    (call(sc.prune_filters(network(), X, WHC(), fraction=0.5, equivalent=True).model), ValueError,
     "the model contains compressors; first call sparseconv.pruning.merge(model)"),
    (call(nn.Sequential(nn.LSTM(12, 4), Function(lambda y: y[0]))), ValueError,
     "such as Conv1d, ConvTranspose1d, SparseConv1d, Linear:\n0: LSTM is not pruned; only "),
    (call(nn.Sequential(nn.PReLU())), ValueError, "removed; expected layers such as Conv1d, "),
    (call(returning(lambda y: np.array(y))), ValueError, "its output contains ndarray"),
    (call(network(Function(lambda x: x * next(COUNT)))), ValueError,
     "the model runs on the same input, but they depend on its state, or on random"),
)  # fmt: skip


def evolve(*data: Any, **options: Any) -> Evolutionary:
    return Evolutionary(data, **({"population": 2, "generations": 1} | options))


LOGITS = network()[:-1]

test_criteria = refusals(
    (lambda: Magnitude(0.5), ValueError, "p must be finite and at least 1, but got 0.5"),
    (lambda: DSP(X, eps=1), ValueError, "eps must lie in [0, 1), but got 1"),
    (lambda: Jacobian((X, Y), batches=0), ValueError, "batches must be at least 1"),
    (lambda: Jacobian((X, Y), loss=nn.NLLLoss), TypeError, "function of the outputs and labels"),
    (call(criterion=Jacobian((X, Y), loss=nn.NLLLoss(reduction="none"))), ValueError,
     "and labels (6,) of torch.int64 it fails or returns a vector (reduction='none'): shape"),
    (call(criterion=Jacobian((X, Y), loss=nn.BCELoss())), ValueError, "expected loss to be a func"),
    (call(criterion=Jacobian((X, Y), loss=lambda out, y: out.sum().detach())), ValueError,
     "returns a scalar, but the result has no gradient; remove detach and"),
    (lambda: evolve(X, Y, tolerance=2), ValueError, "tolerance must lie in [0, 1], but got 2"),
    (lambda: evolve(X, Y, population=1), ValueError, "population must be at least 2"),
    (call(criterion=Jacobian(X)), ValueError, "batches (x, y), but the labels y"),
    (call(returning(torch.squeeze), X, Jacobian([(X, Y), (X[:1], Y[:1])])), ValueError,
     "for a DataLoader, whose last batch may contain 1 series, drop_last=True"),
    (call(criterion=Jacobian((X, Y[:3]))), ValueError, "(X, y) of equal length, but got [("),
    (call(criterion=Jacobian((X, Y)), model=LOGITS), ValueError, "pass loss=F.cross_entropy"),
    (call(criterion=Jacobian((X, Y + 1))), ValueError, "Jacobian expected a class index"),
    (call(criterion=Jacobian((X, torch.eye(3)[Y]))), ValueError, "(6, 3); for one-hot labels"),
    (call(criterion=Jacobian((X, torch.eye(3).long()[Y]), loss=torch.nn.functional.cross_entropy)),
     ValueError, "Jacobian: expected y to contain a string or a real number for each case, but"),
    (call(criterion=DSP(iter([]))), ValueError, "an iterator is empty after one pass"),
    (call(criterion=DSP(DataLoader([*X], batch_size=9, drop_last=True))), ValueError,
     "contain none (drop_last=True omits a batch of fewer than 9 series)"),
    (call(criterion=DSP(TensorDataset(X, Y))), ValueError, "DataLoader(dataset, batch_size=64)"),
    (call(criterion=Jacobian(DataLoader(TensorDataset(X, Y), batch_size=None))), ValueError,
     "Jacobian expected batches, but got a single series (2, 12)"),
    (call(criterion=DSP(HOLE)), ValueError, "DSP: expected X to be finite, but 1 of 6 "),
    (call(criterion=DSP(X), model=broken()), ValueError, "check that the weights and the data c"),
    (call(criterion=evolve(X, Y), model=broken()), ValueError, "finite outputs, but some are NaN"),
    (call(criterion=evolve(X, Y + 0.5)), TypeError, "Evolutionary: expected y to contain class i"),
    (call(criterion=evolve(X, Y + 1)), ValueError, "a class index from 0 to 2 for"),
    (call(criterion=evolve(X, -100 * Y)), ValueError, "for each series, but got tensor([   0, -10"),
)  # fmt: skip


def test_evolutionary_without_pymoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pymoo", None)
    refuses(lambda: evolve(X, Y), RuntimeError, "install it with pip install 'sparseconv[pruning]'")


def keep(filters: dict[str, list[Any]]) -> Callable[[], Any]:
    return lambda: keep_filters(sc.models.ResNet(2, 3, nf=4), X, filters)


FIRST, LAST, SHORTCUT = "blocks.0.body.0", "blocks.0.body.6", "blocks.0.shortcut.0"

SLICED = nn.Sequential(nn.Conv1d(2, 8, 1), Function(lambda x: x[:, 5:]), nn.Conv1d(3, 3, 1))

test_keep_filters = refusals(
    (lambda: keep_filters(SLICED, X, {"0": [1]}), ValueError, "'2' would have no input channels: "),
    (keep({"no": [0]}), ValueError, "filters must name some of ["),
    (keep({FIRST: []}), ValueError, "one number, the same ones as for tied layers, but got []"),
    (keep({FIRST: [1, 4]}), ValueError, "must be from 0 to 3, but got [4]"),
    (keep({"head.2": [0]}), ValueError, "but got [0], which would keep [0, 1, 2]"),
    (keep({LAST: [0, 1], SHORTCUT: [0]}), ValueError, "but got [0, 1], which would keep [0]"),
    (keep({FIRST: [True, False]}), TypeError, "(for a mask: mask.nonzero()[:, 0]), but got True"),
)  # fmt: skip
