"""Several threads on one layer, changes of pattern meanwhile, any number of OpenMP threads."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from random_banks import Problem
from torch import Tensor, nn

from sparseconv import KernelCSR, SparseConv1d
from sparseconv.measure.machine import threads
from sparseconv.rocket import kernel_features
from sparseconv.rocket.bank import KINDS
from sparseconv.training import Recipe, train

THREADS, ROUNDS, CHANGES = 8, 12, 120

pytestmark = pytest.mark.promise("P8")


def compute(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    values = layer.get_parameter("values")
    return (y.detach(), *torch.autograd.grad(y.square().sum(), (x, values)))


def in_threads(work: Callable[[int], Any]) -> list[Any]:
    """Run ``work(0)``, ``work(1)``, ... at the same time; errors come up here."""
    start = threading.Barrier(THREADS)

    def begin(i: int) -> Any:
        start.wait()
        return work(i)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS), timeout=120))


def same(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    """The same bits; inference mode gives no gradients."""
    return all(a.equal(b) for a, b in zip(got, wanted, strict=False))


@pytest.mark.tool("Python threads", "works", "8 threads on one layer, forward and backward")
@pytest.mark.parametrize("openmp", [1, 2])
def test_threads_get_the_bits_of_one(openmp: int, count_cases: Any) -> None:
    """Half of them in inference mode, whose tensors no plan may keep for the others."""
    torch.manual_seed(0)
    options = {"stride": 2, "padding_mode": "reflect"} if openmp == 2 else {}
    pattern = KernelCSR.random((16, 12, 25), 1500)
    series = [torch.randn(2, 12, 100 + 70 * i) for i in range(THREADS)]
    with threads(openmp):
        for _ in range(3):  # a fresh pattern each time: its plans are made by all at once
            fresh = KernelCSR(pattern.crow_indices, pattern.col_indices, pattern.shape)
            layer = SparseConv1d(12, 16, 25, padding=12, pattern=fresh, **options)
            alone = SparseConv1d(12, 16, 25, padding=12, pattern=pattern, **options)
            alone.load_state_dict(layer.state_dict())
            expected = [compute(alone, x) for x in series]

            def work(i: int, layer: Any = layer) -> list[tuple[Tensor, ...]]:
                if i % 2:
                    return [compute(layer, series[i]) for _ in range(ROUNDS)]
                with torch.inference_mode():
                    return [(layer(series[i]),) for _ in range(ROUNDS)]

            found = in_threads(work)
            for want, rounds in zip(expected, found, strict=True):
                assert all(same(got, want) for got in rounds)
                count_cases(ROUNDS)


def test_a_change_of_pattern_in_between_is_safe_and_complete_afterwards(
    count_cases: Any, request: pytest.FixtureRequest
) -> None:
    """What runs meanwhile may see half of it, as with any parameter: a number or an error."""
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)  # threads take turns more often
    torch.manual_seed(0)
    layer = SparseConv1d(8, 8, 15, padding=7, density=0.3)
    shape, nnz = layer.pattern.shape, layer.pattern.nnz
    patterns = [KernelCSR.random(shape, nnz - 40 * (i // 2)) for i in range(4)]
    saved = [SparseConv1d(8, 8, 15, padding=7, pattern=each).state_dict() for each in patterns]
    x, stop, refused = torch.randn(2, 8, 60), threading.Event(), []

    def change() -> int:
        try:
            for n in range(CHANGES):  # with and without another number of weights
                if n % 3:
                    layer.load_state_dict(saved[n % 4])
                else:
                    layer.set_pattern(patterns[n % 4])
                assert layer.pattern == patterns[n % 4], "another thread's reading replaced it"
        finally:
            stop.set()
        return CHANGES

    def use() -> int:
        n = 0
        while not stop.is_set():
            n += 1
            try:
                assert all(t.isfinite().all() for t in compute(layer, x))
            except (ValueError, TypeError, RuntimeError):  # as half of a change reads
                refused.append(n)
        return n

    calls = sum(in_threads(lambda i: use() if i else change()))
    assert len(refused) < calls
    count_cases(calls)
    layer.set_pattern(patterns[1], torch.randn(patterns[1].nnz))
    with torch.no_grad():
        dense = nn.functional.conv1d(x, layer.dense_weight(), layer.bias, padding=7)
        torch.testing.assert_close(layer(x), dense)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", ["values", "bias"])
def test_a_parameter_whose_data_are_replaced_stays_readable(
    name: str, inference: bool, count_cases: Any
) -> None:
    """All that a layer ever holds are zeros; memory that was freed holds ones."""
    x = torch.full((1, 1, 8), float(name == "values"))

    def found(calls: int) -> int:
        layer = SparseConv1d(1, 4096, 1, density=1.0).requires_grad_(False)
        for parameter in layer.parameters():
            parameter.zero_()
        stop = threading.Event()

        def work(i: int) -> int:
            if i:
                with torch.inference_mode(inference):
                    nonzero = sum(int(layer(x).count_nonzero()) for _ in range(calls))
                stop.set()
                return nonzero
            while not stop.is_set():
                layer.get_parameter(name).data = torch.zeros(4096)
                torch.ones(4096)
            return 0

        return sum(in_threads(work))

    with threads(1):
        assert found(100) == 0
        # A first call makes the plan as well.
        assert sum(found(2) for _ in range(60)) == 0
    count_cases(220)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_a_bank_of_random_kernels(kind: str, count_cases: Any) -> None:
    made = Problem(kind, 3).bank
    assert made.series_channels == 1  # then ROCKET's plan packs weights at the first use
    shape = THREADS, 1, made.series_length
    X = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = kernel_features(X, made)
    for _ in range(5):
        fresh = copy.copy(made)
        found = in_threads(lambda i, bank=fresh: [kernel_features(X[i:], bank) for _ in "abc"])
        for i, rounds in enumerate(found):
            assert all(np.array_equal(got, expected[i:]) for got in rounds)
            count_cases(3)


@pytest.mark.promise("P3")
def test_fits_in_threads_give_what_each_gives_alone(count_cases: Any) -> None:
    """Whatever another thread draws meanwhile; without dropout, also its numbers are the same."""
    pytest.importorskip("aeon")
    from sparseconv import DSNClassifier, POCKETClassifier

    X = np.random.default_rng(0).normal(size=(24, 3, 60)).astype(np.float32)
    y = np.arange(24) % 2
    torch.manual_seed(0)
    layers = SparseConv1d(3, 8, 9, density=0.5), nn.Dropout(), nn.AdaptiveMaxPool1d(1)
    with_dropout = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 2), nn.LogSoftmax(1))

    def dsn(seed: int) -> Any:
        options = {"init": "random"} if seed % 2 else {}
        small = {"nf": 3, "depth": 2, "kernel_size": 9, "epochs": 3, "validation": (X, y)}
        fitted = DSNClassifier(**small, **options, random_state=seed).fit(X, y)
        return [(row["train_loss"], row["test_loss"]) for row in fitted.history_]

    def pocket(seed: int) -> Any:
        kind = KINDS[seed % 2]
        fitted = POCKETClassifier(kind, n_kernels=84, n_iter=2, random_state=seed).fit(X, y)
        return fitted.bank_.arrays["channels"].tolist(), fitted.predict_proba(X).tolist()

    def dropout(seed: int) -> Any:
        recipe = Recipe(epochs=3, batch_size=8, seed=seed)
        model = copy.deepcopy(with_dropout)
        history = train(model, X, y, recipe, validation=(X, y), verbose=False).history
        return [(row["train_loss"], row["test_loss"]) for row in history]

    for kinds, drawing in (((dsn, pocket), True), ((dropout, dsn, pocket), False)):
        jobs = [kinds[i % len(kinds)] for i in range(THREADS)]
        alone, stop = [jobs[i](i) for i in range(1, THREADS)], threading.Event()

        def work(i: int, jobs: Any = jobs, drawing: bool = drawing, stop: Any = stop) -> Any:
            if i:
                return [jobs[i](i) for _ in range(2)]
            drawn = []
            while drawing and len(drawn) < 20_000 and not stop.wait(1e-5):
                drawn.append(float(torch.rand(())))
            return drawn

        torch.manual_seed(7)
        drawn, *found = in_threads(work)
        torch.manual_seed(7)
        assert drawn == [float(torch.rand(())) for _ in drawn]
        for one, rounds in zip(alone, found, strict=True):
            assert rounds == [one] * 2
            count_cases(2)


@pytest.mark.promise("P3")
@pytest.mark.tool("torch.set_num_threads", "works", "also between calls; the bits stay")
def test_any_number_of_threads_at_any_call() -> None:
    """OpenMP counts per thread: other threads may have set another number each."""
    torch.manual_seed(0)
    layer = SparseConv1d(16, 16, 39, padding="same", density=0.3)
    x = torch.randn(4, 16, 700)
    expected = compute(layer, x)

    def work(i: int) -> bool:
        torch.set_num_threads(1 + i % 3)
        return same(compute(layer, x), expected)

    with threads(torch.get_num_threads()):
        assert all(in_threads(work))
    for forward, backward in ((1, 2), (2, 1), (7, 3), (3, 16)):
        leaf = x.clone().requires_grad_()
        with threads(forward):
            y = layer(leaf)
        with threads(backward):
            grads = torch.autograd.grad(y.square().sum(), (leaf, layer.values))
            assert torch.get_num_threads() == backward
        assert same((y, *grads), expected), (forward, backward)
