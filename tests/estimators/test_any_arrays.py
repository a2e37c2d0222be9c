"""Series and labels of one content in any form give the same result, wherever they are taken."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("aeon", reason="aeon is not installed")

import pandas as pd
from aeon.utils.conversion import convert_collection
from tiny import network

import sparseconv as sc
from sparseconv import DSNClassifier, POCKETClassifier, RocketTransformer, kernel_features
from sparseconv.core.arrays import as_labels, three_axes
from sparseconv.running import copied_arguments, predict_log_proba
from sparseconv.training import Recipe, train

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(-8, 9, (12, 1, 24)) / 4.0  # float16 holds them
Y = np.arange(12) % 2
BANK, MINI = (
    RocketTransformer(kind, n, random_state=0).fit(X).bank_
    for kind, n in (("rocket", 20), ("minirocket", 84))
)
BY_CASE = pd.MultiIndex.from_product([range(12), range(24)])
BY_TRIAL = pd.MultiIndex.from_product([list("ba"), range(6)])
Form = Callable[[np.ndarray], Any]
STRIDED: dict[str, Form] = {
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "by columns": np.asfortranarray,
    "read-only": lambda a: np.broadcast_to(a, a.shape),
    "unaligned": lambda a: np.frombuffer(b"." + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "long double": lambda a: a.astype(np.longdouble),
    "float16": lambda a: a.astype(np.float16),
    "objects": lambda a: a.astype(object),
    "list": lambda a: a.tolist(),
    "tensor": torch.from_numpy,
    "masked array": lambda a: np.ma.masked_array(a, a > 99),
}
SERIES = STRIDED | {
    "tensor with gradients": lambda a: torch.tensor(a, requires_grad=True),
    "bfloat16": lambda a: torch.tensor(a).bfloat16(),
    "sparse tensor": lambda a: torch.tensor(a).to_sparse(),
    "list of arrays": list,
    "list of tensors": lambda a: [torch.tensor(case) for case in a],
    "without a channel axis": lambda a: a[:, 0],
    "frame of cases": lambda a: pd.DataFrame(a[:, 0]),
    "frames": lambda a: [pd.DataFrame(case) for case in a],
    "frame by case and time": lambda a: pd.DataFrame(a.reshape(-1, 1), BY_CASE),
    "its rows in another order": lambda a: pd.DataFrame(a.reshape(-1, 1), BY_CASE).sample(
        frac=1, random_state=0
    ),
    "column by case and time": lambda a: pd.Series(a.ravel(), BY_CASE)[::-1],
    "frame of series": lambda a: pd.DataFrame({"x": [pd.Series(case[0]) for case in a]}),
    "frame that may lack values": lambda a: pd.DataFrame(a[:, 0]).astype("Float64"),
}
LABELS = STRIDED | {
    "uint8": lambda y: y.astype(np.uint8),
    "bool": lambda y: y.astype(bool),
    "column": lambda y: y[:, None],
    "series": pd.Series,
    "frame": lambda y: pd.DataFrame({"label": y}),
    "Int64": lambda y: pd.Series(y).astype("Int64"),
    "by subject and trial": lambda y: pd.Series(y, BY_TRIAL),
    "column by subject and trial": lambda y: pd.DataFrame({"label": y}, BY_TRIAL),
}


def trained(X: Any = X, y: Any = Y) -> Any:
    result = train(
        network(), X, y, Recipe(epochs=1, batch_size=12), verbose=False, validation=(X, y)
    )
    return [[row["train_loss"], row["test_loss"]] for row in result.history]


def fitted(classifier: Any, X: Any = X, y: Any = Y) -> Any:
    assert 0 <= classifier.fit(X, y).score(X, y) <= 1
    return np.asarray(classifier.predict_proba(X))


def dsn(X: Any = X, y: Any = Y) -> Any:
    return fitted(
        DSNClassifier(nf=2, kernel_size=6, depth=2, epochs=1, batch_size=12, random_state=0), X, y
    )


def pocket(X: Any = X, y: Any = Y) -> Any:
    return fitted(POCKETClassifier(BANK, n_iter=1, random_state=0), X, y)


def transformed(X: Any = X, y: Any = Y) -> Any:
    return RocketTransformer("minirocket", n_kernels=84, random_state=0).fit_transform(X, y)


def pruned(X: Any = X, y: Any = Y) -> Any:
    example, criterion = torch.zeros(1, 1, 24), sc.pruning.Jacobian((X, y))
    report = sc.prune_filters(network(), example, criterion, fraction=0.5)[1]
    return np.concatenate([layer.kept for layer in report.layers])


def log_proba(X: Any = X) -> Any:
    return predict_log_proba(network(), X).numpy()


def features(X: Any = X) -> Any:
    return np.hstack([kernel_features(X, BANK), kernel_features(X, MINI)])


TAKES = [trained, dsn, pocket, transformed, pruned, log_proba, features]


@pytest.mark.parametrize("take", [dsn, pocket, transformed, features])
def test_missing_values_are_named(take: Callable[..., Any]) -> None:
    hole = X.astype(object)
    hole[3, 0, 5] = None
    for name in ["list", "objects", "frame that may lack values"]:
        with pytest.raises(ValueError, match="missing"):
            take(SERIES[name](hole))


@pytest.mark.parametrize("take", TAKES)
def test_series(take: Callable[..., Any]) -> None:
    wanted, before = take(), X.copy()
    for name, form in SERIES.items():
        assert np.array_equal(take(form(X)), wanted), name
    for dtype in (">i2", "i1", "i8"):
        assert np.array_equal(take((4 * X).astype(dtype)), take(4 * X)), dtype
    assert np.array_equal(X, before)
    assert np.array_equal(take(X > 0), take((X > 0) * 1.0))


def test_a_table_with_several_levels_of_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="one row for each"):
        three_axes("", "X", pd.DataFrame(X.reshape(-1, 1), BY_CASE).unstack())


@pytest.mark.parametrize(
    "labels",
    [
        ["a", float("nan")], ["a", 1], np.array(["a", "a\0"], object),
        np.array([2**53, 2**53 + 1, 0.0], object), np.ma.masked_array(["a", "b"], [True, False]),
    ],
)  # fmt: skip
def test_labels_that_would_be_mixed_up_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"mixed with|apart") as raised:
        as_labels("", "y", labels)
    assert "one length" not in str(raised.value)


def test_tables_are_read_as_aeon_reads_them() -> None:
    """Cases, channels and times in its order, whatever the order of rows and columns."""
    rows = [(case, time) for case in ("b", "c", "a") for time in (7, 30, 5, 11)]
    table = pd.DataFrame(
        RANDOM.normal(size=(12, 3)),
        pd.MultiIndex.from_tuples(rows).set_levels(["c", "b", "a"], level=0),
        ["x10", "x2", "x1"],
    )
    mixed = table.set_axis(["x", 10, 9], axis=1)
    for one in (table, table.sample(frac=1, random_state=1), table[["x1", "x10", "x2"]], mixed):
        found = np.asarray(three_axes("", "X", one))
        assert np.array_equal(found, convert_collection(one, "numpy3D"))


@pytest.mark.parametrize("take", [trained, dsn, pocket, transformed, pruned])
def test_labels(take: Callable[..., Any]) -> None:
    wanted = take()
    for name, form in LABELS.items():
        assert np.array_equal(take(X, form(Y)), wanted), name


def test_example_inputs() -> None:
    """What ``profile``, ``convert`` and ``prune_filters`` are given."""
    pair = torch.nn.Bilinear(1, 1, 1)  # any model of two arguments
    tokens, mask = copied_arguments(pair, (np.arange(3), X > 0))
    assert (tokens.dtype, mask.dtype) == (torch.int64, torch.bool)
    table = torch.nn.Sequential(torch.nn.Embedding(9, 2))
    assert copied_arguments(table, np.ones((1, 2, 3), "i4"))[0].dtype == torch.int32
    for model in (network(), network().double()):
        dtype = next(model.parameters()).dtype
        for x in (X.astype(">f8")[..., ::-1], torch.from_numpy(X).flip(-1), X[..., ::-1] / 1):
            (found,) = copied_arguments(model, x)
            assert torch.equal(found, torch.from_numpy(X).to(dtype).flip(-1))
        for integers in ((4 * X).astype("i8"), X > 0):
            for name in ("reversed", "big-endian", "read-only", "tensor"):
                (found,) = copied_arguments(model, STRIDED[name](integers))
                assert torch.equal(found, torch.tensor(integers, dtype=dtype)), name
        for x in (X, torch.from_numpy(X)):
            report = sc.prune_filters(model, x, sc.pruning.WHC(), fraction=0.5)[1]
            assert report.measure(x[:2], least_seconds=0) is not None


def test_large_integers_stay_distinct() -> None:
    y = 999_000_011_000_000_103 + Y
    for form in (list, pd.Series, np.ma.masked_array, lambda y: pd.Series(y).astype("Int64")):
        found = DSNClassifier(nf=2, kernel_size=6, depth=2, epochs=1).fit(X, form(y))
        assert found.classes_.tolist() == np.unique(y).tolist()


@pytest.mark.parametrize("shape", [(24, 40, 3), (24, 40, 1)])
def test_swapped_axes_are_named(shape: tuple[int, ...]) -> None:
    X, y = RANDOM.normal(size=shape), np.arange(24) % 2
    model = sc.models.DSN(40, 2, nf=2, kernel_size=6, depth=2)
    with pytest.warns(UserWarning, match=r"expected series \(n_cases, n_channels, n_timepoints\)"):
        train(model, X, y, Recipe(epochs=1), verbose=False)
    with pytest.warns(UserWarning, match="40 channels of only") as seen:
        DSNClassifier(nf=2, kernel_size=6, depth=2, epochs=1).fit(X, y)
    assert sum("40 channels" in str(warning.message) for warning in seen) == 1
    for kernels in ("rocket", "minirocket"):
        with (
            pytest.warns(UserWarning, match="40 channels of only"),
            pytest.raises(ValueError, match="or swap the axes if they are not"),
        ):
            POCKETClassifier(kernels, n_kernels=84).fit(X, y)


def test_a_fit_under_autocast_is_the_same() -> None:
    usual = pocket()
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(pocket(), usual)


@pytest.mark.parametrize("take", [dsn, pocket, transformed, features])
def test_under_another_default_device_it_is_the_same(
    take: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = take()
    for name, bank in (("BANK", BANK), ("MINI", MINI)):
        monkeypatch.setitem(globals(), name, pickle.loads(pickle.dumps(bank)))  # without its plan
    with torch.device("meta"):
        np.testing.assert_array_equal(take(), usual)
