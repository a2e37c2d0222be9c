"""A sparse convolution whose kernel computes the 1x1 convolution behind it as well, in inference.

The two may be in one Sequential or at the border of two. Whether they were computed together shows
in the profiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from folded import body, bordering, flat, operations, original_and_copy, outcome
from torch import Tensor, nn

from sparseconv import SparseConv1d
from sparseconv.functional.fused import EPILOGUE_MAX_CHANNELS, EPILOGUE_MIN_POSITIONS
from sparseconv.measure.machine import threads
from sparseconv.nn.block import Block
from sparseconv.ops.backends import extension

pytestmark = pytest.mark.skipif(
    extension is None or extension.isas() == ["baseline"], reason="needs the C++ kernels and AVX2"
)

X = torch.randn(3, 4, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def together(model: nn.Module, x: Tensor = X) -> int:
    """How often a sparse convolution was computed with the 1x1 convolution behind it."""
    return operations(model, x)["sparseconv::fprop_pointwise"]


class OwnConv(nn.Conv1d):
    pass


def sparse() -> SparseConv1d:
    return SparseConv1d(4, 9, 5)


TOGETHER: dict[str, Callable[[], nn.Module]] = {
    "flat": flat,
    "no bias": lambda: flat(bias=False),
    "double": lambda: flat().double(),
    "bordering": bordering,
    "blocks": lambda: bordering(Block, bias=False),
    "block": lambda: flat(Block),
    "three deep and an empty one": lambda: nn.Sequential(
        nn.Sequential(nn.Sequential(body())), nn.Sequential(), bordering()[1]
    ),
    "no norm": lambda: nn.Sequential(sparse(), nn.ReLU(), nn.Conv1d(9, 4, 1)),
    "no ReLU": lambda: nn.Sequential(sparse(), nn.BatchNorm1d(9), nn.Conv1d(9, 4, 1)),
}
APART: dict[str, Callable[[], nn.Module]] = {
    "subclass": lambda: nn.Sequential(*body(), OwnConv(9, 4, 1)),
    "two taps": lambda: nn.Sequential(*body(), nn.Conv1d(9, 4, 2)),
    "stride": lambda: nn.Sequential(*body(), nn.Conv1d(9, 4, 1, stride=2)),
    "padding": lambda: nn.Sequential(*body(), nn.Conv1d(9, 4, 1, padding=1)),
    "groups": lambda: nn.Sequential(*body(), nn.Conv1d(9, 9, 1, groups=3)),
    "half": lambda: nn.Sequential(*body(), nn.Conv1d(9, 4, 1)).bfloat16(),
    "reference": lambda: nn.Sequential(
        SparseConv1d(4, 9, 5, backend="reference"), nn.ReLU(), nn.Conv1d(9, 4, 1)
    ),
    "more channels than fit in L2": lambda: nn.Sequential(
        *body(outputs=EPILOGUE_MAX_CHANNELS + 1), nn.Conv1d(EPILOGUE_MAX_CHANNELS + 1, 4, 1)
    ),
    "something between": lambda: nn.Sequential(*body(), nn.Dropout(), nn.Conv1d(9, 4, 1)),
}


@pytest.mark.parametrize("name", [*TOGETHER, *APART])
def test_what_is_computed_together(name: str) -> None:
    model, fast = original_and_copy({**TOGETHER, **APART}[name])
    x = X.to(next(model.parameters()).dtype)
    assert together(fast, x) == (name in TOGETHER)
    if x.dtype != torch.bfloat16:  # half types have their computed bound in test_inference.py
        torch.testing.assert_close(fast(x), model(x).detach())


def test_not_on_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast = original_and_copy(bordering)
    monkeypatch.setenv("SPARSECONV_CPU_ISA", "baseline")
    assert together(fast) == 0


def test_several_threads_where_each_has_enough() -> None:
    model, fast = original_and_copy(bordering)
    for count in (2, 3):
        enough = torch.randn(count, 4, EPILOGUE_MIN_POSITIONS)
        with threads(count):
            assert together(fast, enough) == 1
            assert together(fast, enough[:, :, 1:]) == 0
            torch.testing.assert_close(fast(enough), model(enough).detach())


def test_modules_put_into_an_inner_sequential_are_run() -> None:
    model, fast = original_and_copy(bordering)
    fast(X)
    for network in (model, fast):
        network[0].append(nn.Tanh())
    assert together(fast) == 0
    torch.testing.assert_close(fast(X), model(X).detach())


@pytest.mark.parametrize("make", [flat, bordering])
def test_wrong_inputs_fail_as_before(make: Callable[[], nn.Module]) -> None:
    model, fast = original_and_copy(make)
    for x in (torch.randn(3, 5, 40), X.double(), torch.zeros(3, 4, 0)):
        assert outcome(fast, x) == outcome(model, x)
        assert isinstance(outcome(fast, x)[0], type)


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("shape", [(4, 9, 3), (0, 9, 1), (1,), (4, 1), (7,)])
def test_parameters_of_another_shape_do_what_they_do_in_the_original(name, shape) -> None:
    model, fast = original_and_copy(flat)
    for network in (model, fast):
        setattr(network[3], name, nn.Parameter(torch.ones(shape), requires_grad=False))
        if shape[0] == 0:
            network[3].bias = None
    assert type(outcome(fast, X)) is type(outcome(model, X))
    if isinstance(outcome(model, X), tuple):
        assert outcome(fast, X) == outcome(model, X)
