"""What holds for every implementation of the kernels: compiled, interpreted and emulated ones.

A test file gets the tests and the fixture below by importing them; ``engines`` is its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from engines import NAMES, Engines, compute
from layouts import LAYOUTS
from torch import Tensor

from sparseconv import KernelCSR
from sparseconv.core.geometry import Geometry
from sparseconv.testing import Case, Tensors, exact_results

MODES = ("zeros", "replicate", "reflect", "circular")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is filled with NaN, so an element that no kernel wrote shows."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def digest(tensor: Tensor) -> str:
    raw = tensor.contiguous().view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def check_integers(case: Case, engines: Engines) -> bool:
    """Compare exactly; False if the result is nearly all zeros, which proves nothing."""
    tensors = case.tensors()
    wanted = exact_results(case, tensors)
    if not wanted[0].numel() or (wanted[0] == 0).double().mean() > 0.7:
        return False
    for engine in engines():
        for name, got, exact in zip(NAMES, compute(case, tensors, engine), wanted, strict=True):
            assert got.equal(exact.to(got.dtype)), f"{name} on {engine}: {case!r}"
    return True


def check_layout(case: Case, name: str, engines: Engines) -> int:
    """Each input in this layout gives the bits of its contiguous copy; the number of cases."""
    for engine, field in product(engines(), Tensors._fields):
        plain = engine.put(case.tensors())
        odd = plain._replace(**{field: LAYOUTS[name](getattr(plain, field))})
        even = odd._replace(**{field: getattr(odd, field).contiguous().clone()})
        both = (compute(case, tensors, engine) for tensors in (odd, even))
        for what, a, b in zip(NAMES, *both, strict=True):
            assert a.equal(b), f"{what} with {name} {field}: {case!r}"
    return len(Tensors._fields)


def marked(tensor: Tensor, at: int, special: float) -> tuple[Tensor, Tensor]:
    """A copy with one special number, and where it is."""
    copy, mark = tensor.clone(), torch.zeros_like(tensor)
    copy.view(-1)[at], mark.view(-1)[at] = special, 1
    return copy, mark


def check_special_input(case: Case, special: float, engines: Engines, every: int = 1) -> None:
    """NaN or infinity in input or gradient reaches what active weights take it to, only that."""
    plain = case.tensors()
    ones = Tensors(*(torch.ones_like(t) for t in plain))._replace(bias=None)
    for at in range(0, plain.input.numel(), every):
        x, mark = marked(plain.input, at, special)
        hit, _, hit_weights = (met > 0 for met in exact_results(case, ones._replace(input=mark)))
        for engine in engines():
            y, dx, dw = compute(case, plain._replace(input=x), engine)
            assert (~y.isfinite()).equal(hit), (engine, at, case)
            assert dx.isfinite().all(), "the gradient of the input does not read it"
            assert (~dw.isfinite()).equal(hit_weights), (engine, at, case)
    weights = case.padding_mode != "zeros"  # infinity times a zero of the padding
    for at in range(0, plain.grad.numel(), every):
        grad, mark = marked(plain.grad, at, special)
        _, hit, hit_weights = (met > 0 for met in exact_results(case, ones._replace(grad=mark)))
        for engine in engines():
            _, dx, dw = compute(case, plain._replace(grad=grad), engine)
            assert (~dx.isfinite()).equal(hit), (engine, at, case)
            assert not weights or (~dw.isfinite()).equal(hit_weights), (engine, at, case)


def test_multiply_add_rounds_once(engines: Engines) -> None:
    """The product is so close to a tie that rounding it first would round the sum up."""
    u = 2.0**-24
    x = torch.full((1, 1, 1), (1 + 2.0**-15) * 2.0**-12)
    values = torch.tensor([(1 - 2.0**-15) * 2.0**-12])
    bias, pattern = torch.tensor([1 + 2 * u]), KernelCSR.full((1, 1, 1))
    geometry = Geometry.of((1, 1, 1), 1, (0, 0), 1, 1, "zeros")
    for engine in engines():
        assert engine.kernels.fprop(x, values, bias, pattern, geometry).item() == bias.item()


@pytest.mark.promise("P4")
def test_empty_row_gives_exactly_the_bias(engines: Engines) -> None:
    case = Case(2, 3, 4, 5, 40, padding=2, pattern="empty_row")
    assert not case.make_pattern().to_mask()[0].any()
    x, values, bias, grad = case.tensors()
    x[:] = float("nan")
    for engine in engines():
        y, _, _ = compute(case, Tensors(x, values, bias, grad), engine)
        assert (y[:, 0] == bias[0]).all()
        assert y[:, 1].isnan().any()


@pytest.mark.parametrize("batched", [True, False])
def test_nothing_to_do(batched: bool, engines: Engines) -> None:
    none = Case(2 if batched else 1, 3, 4, 5, 40, pattern="none", batched=batched)
    tensors = none.tensors()
    for engine in engines():
        y, dx, dw = compute(none, tensors, engine)
        assert y.equal(tensors.bias[:, None].expand_as(y))
        assert dx.shape == tensors.input.shape
        assert not dx.any()
        assert dw.shape == (0,)
        if batched:
            empty = Case(0, 3, 4, 5, 40)
            y, dx, dw = compute(empty, empty.tensors(), engine)
            assert (y.shape, dx.shape) == ((0, 4, 36), (0, 3, 40))
            assert dw.shape == (empty.make_pattern().nnz,)
            assert not dw.any()


def test_relu_is_that_of_torch(engines: Engines) -> None:
    case = Case(2, 2, 3, 3, 9, padding=2, density=0.5)
    x, values, bias, _ = case.tensors()
    x[0, 0, 4] = float("nan")
    for engine in engines():
        pattern, geometry = case.make_pattern(), case.geometry
        plain = engine.kernels.fprop(x, values, bias, pattern, geometry)
        fused = engine.kernels.fprop(x, values, bias, pattern, geometry, True)
        torch.testing.assert_close(fused, plain.relu(), rtol=0, atol=0, equal_nan=True)
        assert fused.isnan().any()
        assert (fused == 0).any()


@pytest.mark.promise("P5")
def test_wrong_tensors_are_refused(engines: Engines) -> None:
    case = Case(2, 4, 6, 3, 20)
    x, values, bias, grad = case.tensors()
    plan = case.make_pattern(), case.geometry
    wrong = (
        ("fprop", x[:, 1:], values, bias, *plan),
        ("fprop", x[..., :2], values, bias, *plan),
        ("fprop", x.half(), values, bias, *plan),
        ("fprop", x, values[1:], bias, *plan),
        ("fprop", x, values, bias[1:], *plan),
        ("dgrad", grad, values[1:], *plan, 20),
        ("dgrad", grad[..., 1:], values, *plan, 20),
        ("dgrad", grad, values, *plan, 0),
        ("wgrad", grad[1:], x, *plan),
        ("wgrad", grad.half(), x, *plan),
    )
    for engine in engines():
        for op, *arguments in wrong:
            with pytest.raises(
                (ValueError, TypeError), match=r"(?i)expected|must|kernel size|type"
            ):
                getattr(engine.kernels, op)(*arguments)
