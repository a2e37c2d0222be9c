"""What ``prune_filters``, its criteria, ``keep_filters`` and ``factorize`` refuse."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from layers import Function
from refusals import changed, refusals
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

import sparseconv as sc
from sparseconv.pruning import (
    DSP,
    WHC,
    Criterion,
    Evolutionary,
    InstanceSparsity,
    Jacobian,
    Magnitude,
    keep_filters,
)

torch.manual_seed(0)
X, Y = torch.randn(6, 2, 12), torch.arange(6) % 3
HOLE = X.where(X[0, 0, 0] != X, torch.nan)


def network(*middle: nn.Module) -> nn.Sequential:
    """``"0"`` has eight filters, then comes ``"1"``, if something is given, ``"2"`` reads them."""
    layers = [nn.Conv1d(2, 8, 3), *(middle or [nn.ReLU()]), nn.Conv1d(8, 3, 10)]
    return nn.Sequential(*layers, nn.Flatten(), nn.LogSoftmax(1))


def convs(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(layers or [nn.Conv1d(4, 4, 3) for _ in range(3)]))


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


def spoil(model: Any) -> None:
    model[0].weight.data[0, 0, 0] = torch.nan


def hook(conv: nn.Module) -> None:
    conv.register_forward_hook(print)


def tie(model: Any) -> None:
    model[2].weight = model[1].weight


def alone(x: Tensor) -> Tensor:
    """Raise while operations are watched."""
    if torch._C._len_torch_function_stack():
        raise OSError("used")
    return x


def hold(model: Any) -> None:
    model.order = [*model]


COUNT = itertools.count(1)
FLAT = nn.Sequential(network()[0], nn.Flatten(), nn.Linear(80, 2))
MASKED = prune.l1_unstructured(nn.Conv1d(8, 8, 1), "weight", 2)


def adafactor() -> dict[str, Any]:
    model = network()
    optimizer = torch.optim.Adafactor(model.parameters())
    model(X).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


test_arguments = refusals(
    (call(fraction=None), ValueError, "fraction"),
    (call(fraction=0.5, target_macs=5), ValueError, "target_macs"),
    (call(fraction=1), ValueError, "fraction"),
    (call(target_macs=3), ValueError, "target_macs"),
    (call(steps=0), ValueError, "steps"),
    (call(ignore=["0", "no"]), ValueError, "'no'"),
    (call(ignore="0"), ValueError, "filters"),
    (call(criterion=WHC), TypeError, "criterion"),
    (call(criterion=DSP(X), fraction=0.5), ValueError, "target_macs"),
    (call(x=X.tolist()), TypeError, "conv1d()"),
    (call(x=X[:, :1]), RuntimeError, "2 channels"),
    (call(x=X[0]), ValueError, "channels"),
    (call(optimizer=sgd(network()), equivalent=True), ValueError, "optimizer"),
    (call(changed(network(), hold), fraction=0.5, equivalent=True), ValueError, "Sequential.order"),
    (call(**adafactor()), ValueError, "'row_var'] of '0.weight'"),
)

test_models = refusals(
    (call(changed(convs(*(nn.Conv1d(n, 8, 1) for n in (2, 8, 8))), tie)), ValueError, "'2'"),
    (call(torch.compile(network(), backend="eager")), ValueError, "._orig_mod"),
    (call(network(MASKED)), ValueError, "'weight'"),
    (call(nn.Sequential(nn.Conv1d(2, 8, 3), nn.Linear(10, 4))), ValueError, "1: its input has"),
    (call(nn.Sequential(nn.Conv1d(2, 8, 3), Function(lambda x: x.mT), nn.Conv1d(10, 4, 1))),
     ValueError, "but it reads them in dimension 1"),
    (call(network(Function(alone))), NotImplementedError, "1 (Function)"),
    (call(sc.prune_filters(network(), X, WHC(), fraction=0.5, equivalent=True).model), ValueError,
     "compressors"),
    (call(nn.Sequential(nn.LSTM(12, 4), Function(lambda y: y[0]))), ValueError, "LSTM"),
    (call(nn.Sequential(nn.PReLU())), ValueError, "Conv1d"),
    (call(nn.Sequential(network(), Function(np.array))), ValueError, "ndarray"),
    (call(nn.Sequential(network(), Function(lambda y: None))), ValueError, "contains none"),
    (call(network(Function(lambda x: x * next(COUNT)))), ValueError, "each time"),
)  # fmt: skip


def evolve(*data: Any, **options: Any) -> Evolutionary:
    return Evolutionary(data, **({"population": 2, "generations": 1} | options))


def jacobian(data: Any = (X, Y), model: nn.Module | None = None, **options: Any) -> Any:
    return call(model, criterion=Jacobian(data, **options))


test_criteria = refusals(
    (lambda: Magnitude(0.5), ValueError, "p must be"),
    (lambda: DSP(X, eps=1), ValueError, "eps"),
    (lambda: Jacobian((X, Y), batches=0), ValueError, "batches"),
    (lambda: evolve(X, Y, tolerance=2), ValueError, "tolerance"),
    (lambda: evolve(X, Y, population=1), ValueError, "population"),
    (jacobian(X), ValueError, "the labels y"),
    (jacobian((X, Y[:3])), ValueError, "one length"),
    (jacobian((X, Y + 1)), ValueError, "class index"),
    (jacobian((X, torch.eye(3)[Y])), ValueError, "one-hot"),
    (call(criterion=DSP(iter([]))), ValueError, "iterator"),
    (call(criterion=DSP(DataLoader([*X], batch_size=9, drop_last=True))), ValueError, "drop_last"),
    (call(criterion=DSP(HOLE)), ValueError, "NaN"),
    (call(criterion=DSP(X[:, :1])), RuntimeError, "to have 2 channels"),
    (call(changed(network(), spoil), criterion=DSP(X)), ValueError, "NaN"),
    (call(criterion=evolve(X, Y + 0.5)), TypeError, "Evolutionary"),
    (call(criterion=evolve(X, -100 * Y)), ValueError, "class index"),
)


def penalize(*stages: str, calls: int = 1) -> None:
    with InstanceSparsity(FLAT, stages) as penalty:
        for _ in range(calls):
            FLAT(X)
        penalty()


test_instance_sparsity = refusals(
    (lambda: InstanceSparsity(FLAT), ValueError, "stages"),
    (lambda: InstanceSparsity(FLAT, ["0"], -1), ValueError, "weight (--silence)"),
    (lambda: penalize("no"), AttributeError, "`no`"),
    (lambda: penalize("2"), IndexError, "Dimension"),
    (lambda: penalize("0", calls=0), RuntimeError, "non-empty"),
)


def keep(filters: dict[str, list[Any]]) -> Callable[[], Any]:
    return lambda: keep_filters(sc.models.ResNet(2, 3, nf=4), X, filters)


FIRST, LAST, SHORTCUT = "blocks.0.body.0", "blocks.0.body.6", "blocks.0.shortcut.0"

SLICED = nn.Sequential(nn.Conv1d(2, 8, 1), Function(lambda x: x[:, 5:]), nn.Conv1d(3, 3, 1))

test_keep_filters = refusals(
    (lambda: keep_filters(SLICED, X, {"0": [1]}), ValueError, "'2'"),
    (keep({"no": [0]}), ValueError, "'no'"),
    (keep({FIRST: []}), ValueError, "one number"),
    (keep({FIRST: [1, 4]}), ValueError, "below 4"),
    (keep({"head.2": [0]}), ValueError, "[0, 1, 2]"),
    (keep({LAST: [0, 1], SHORTCUT: [0]}), ValueError, "[0]"),
    (keep({FIRST: [True, False]}), TypeError, "mask.nonzero()[:, 0]"),
)


# --- factorize ---


def split(whole: nn.Module, *names: str, **options: Any) -> Callable[[], Any]:
    """Factorize the set of the named layers."""
    return lambda: sc.factorize(
        whole, layers=[list(names)] if names else None, **(options or {"rank": 1})
    )


def pair(layer: nn.Module) -> Callable[[], Any]:
    return split(convs(nn.Conv1d(4, 4, 3), layer), "0", "1")


def causal() -> nn.Module:
    conv = nn.Conv1d(4, 4, 3)
    forward = conv.forward
    conv.forward = lambda input: forward(nn.functional.pad(input, (2, 0)))
    return conv


MINE = type("Mine", (sc.SparseConv1d,), {"forward": tie})

test_factorize = refusals(
    (split(convs(), rank=1, parameter_compression=2), ValueError, "parameter_compression"),
    (split(convs(), rank=0), ValueError, "rank"),
    (split(convs(), parameter_compression=1), ValueError, "parameter_compression"),
    (split(convs(), rank=1, method="middle"), ValueError, "method"),
    (lambda: sc.factorize(convs(), layers=["0", "1"], rank=1), ValueError, "layer"),
    (split(convs(), "0", "9"), ValueError, "'9'"),
    (split(convs(), "0", "0"), ValueError, "once"),
    (split(convs(), "0", "1", rank=1, method="svd"), ValueError, "method='svd'"),
    (split(convs(), "0", "1", rank=9), ValueError, "rank"),
    (split(convs(), "0", "1", parameter_compression=50), ValueError, "parameter_compression"),
    (split(changed(convs(), spoil), "0", "1"), ValueError, "finite"),
    (lambda: sc.factorize(convs(), rank=1)[1].curve(), ValueError, "prune_filters"),
    (
        lambda: sc.factorize(convs(), method="svd", rank=1).report.measure(),
        ValueError,
        "pass an example_input",
    ),
    (
        lambda: sc.factorize(convs(), method="svd", rank=1).report.measure(torch.ones(4, 9)),
        ValueError,
        "(N, C, L)",
    ),
    (split(nn.Linear(2, 2)), ValueError, "nn.Conv1d"),
    (split(torch.compile(convs())), ValueError, "._orig_mod"),
    (pair(nn.Conv1d(4, 4, 5)), ValueError, "shape"),
    (pair(nn.Conv1d(4, 4, 3, stride=2)), ValueError, "stride"),
    (pair(nn.Conv1d(4, 4, 3, groups=2)), ValueError, "groups"),
    (pair(nn.ConvTranspose1d(4, 4, 3)), ValueError, "ConvTranspose1d"),
    (pair(sc.SparseConv1d(4, 4, 3)), ValueError, "to_dense"),
    (split(convs(MINE(4, 4, 3), MINE(4, 4, 3))), ValueError, "Mine"),
    (pair(changed(nn.Conv1d(4, 4, 3), hook)), ValueError, "hooks"),
    (pair(causal()), ValueError, "'1'"),
    (split(convs(causal(), causal())), ValueError, "forward"),
    (pair(prune.l1_unstructured(nn.Conv1d(4, 4, 3), "bias", 2)), ValueError, "bias"),
    (split(changed(convs(), tie), "0", "1"), ValueError, "weight"),
    (split(changed(convs(), hold), "0", "1"), ValueError, "Sequential.order"),
)
