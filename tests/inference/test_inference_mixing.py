"""A sparse convolution that mixes its outputs by the 1x1 convolution behind it, in inference.

The two may stand in one Sequential or at the border of two. Whether they were computed in one go
is seen in the profiler, and anybody who could look between them must find what the original gives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from folded import operations, settled
from torch import Tensor, nn

from sparseconv import SparseConv1d, optimize_for_inference
from sparseconv.functional.fused import MIXED_CHANNELS, MIXED_POSITIONS
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


def body(inputs: int = 4, outputs: int = 9, kind: type[nn.Sequential] = nn.Sequential) -> nn.Module:
    conv = SparseConv1d(inputs, outputs, 5, padding=2, bias=False)
    return kind(conv, nn.BatchNorm1d(outputs), nn.ReLU())


def flat(kind: type[nn.Sequential] = nn.Sequential, bias: bool = True) -> nn.Sequential:
    return kind(*body(), nn.Conv1d(9, 4, 1, bias=bias), *body())


def bordering(kind: type[nn.Sequential] = nn.Sequential, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(body(kind=kind), kind(nn.Conv1d(9, 4, 1, bias=bias), *body()))


def mixed(model: nn.Module, x: Tensor = X) -> int:
    """How often a sparse convolution was mixed, in a call that gives what the original gives."""
    return operations(model, x)["sparseconv::fprop_conv1x1"]


def original_and_copy(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = settled(make())
    return model, optimize_for_inference(model)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.Sequential, Block])
@pytest.mark.parametrize("make", [flat, bordering])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixed(make, kind, bias, dtype) -> None:
    model, fast = original_and_copy(lambda: make(kind, bias).to(dtype))
    assert mixed(fast, X.to(dtype)) == 1
    torch.testing.assert_close(fast(X.to(dtype)), model(X.to(dtype)).detach())


def test_three_deep_and_with_an_empty_one() -> None:
    model, fast = original_and_copy(
        lambda: nn.Sequential(nn.Sequential(nn.Sequential(body())), nn.Sequential(), bordering()[1])
    )
    assert mixed(fast) == 1
    torch.testing.assert_close(fast(X), model(X).detach())


def test_no_norm_and_no_relu() -> None:
    conv = [SparseConv1d(4, 9, 5), nn.Conv1d(9, 4, 1)]
    model, fast = original_and_copy(lambda: nn.Sequential(conv[0], nn.ReLU(), conv[1]))
    assert mixed(fast) == 1
    torch.testing.assert_close(fast(X), model(X).detach())
    model, fast = original_and_copy(lambda: nn.Sequential(conv[0], nn.BatchNorm1d(9), conv[1]))
    assert mixed(fast) == 1
    torch.testing.assert_close(fast(X), model(X).detach())


class OwnConv(nn.Conv1d):
    pass


LEFT: dict[str, Callable[[], nn.Module]] = {
    "subclass": lambda: nn.Sequential(*body(), OwnConv(9, 4, 1)),
    "two taps": lambda: nn.Sequential(*body(), nn.Conv1d(9, 4, 2)),
    "stride": lambda: nn.Sequential(*body(), nn.Conv1d(9, 4, 1, stride=2)),
    "padding": lambda: nn.Sequential(*body(), nn.Conv1d(9, 4, 1, padding=1)),
    "groups": lambda: nn.Sequential(*body(), nn.Conv1d(9, 9, 1, groups=3)),
    "half": lambda: nn.Sequential(*body(), nn.Conv1d(9, 4, 1)).bfloat16(),
    "reference": lambda: nn.Sequential(
        SparseConv1d(4, 9, 5, backend="reference"), nn.ReLU(), nn.Conv1d(9, 4, 1)
    ),
    "more channels than wait in L2": lambda: nn.Sequential(
        *body(4, MIXED_CHANNELS + 1), nn.Conv1d(MIXED_CHANNELS + 1, 4, 1)
    ),
    "something between": lambda: nn.Sequential(*body(), nn.Dropout(), nn.Conv1d(9, 4, 1)),
}


@pytest.mark.parametrize("name", LEFT)
def test_not_mixed(name) -> None:
    model, fast = original_and_copy(LEFT[name])
    x = X.to(next(model.parameters()).dtype)
    assert mixed(fast, x) == 0
    if x.dtype == torch.float32:  # half types have their computed bound in test_inference.py
        torch.testing.assert_close(fast(x), model(x).detach())


def test_not_on_the_baseline(monkeypatch) -> None:
    _, fast = original_and_copy(bordering)
    monkeypatch.setenv("SPARSECONV_CPU_ISA", "baseline")
    assert mixed(fast) == 0


def test_several_threads_mix_where_each_has_enough() -> None:
    model, fast = original_and_copy(bordering)
    for count in (2, 3):
        enough = torch.randn(count, 4, MIXED_POSITIONS)
        with threads(count):
            assert mixed(fast, enough) == 1
            assert mixed(fast, enough[:, :, 1:]) == 0
            torch.testing.assert_close(fast(enough), model(enough).detach())


@pytest.mark.parametrize("place", ["0", "1", "0.0", "0.2", "1.0"])
def test_a_hook_sees_what_it_would_see(place) -> None:
    model, fast = original_and_copy(bordering)
    seen: list[tuple[Tensor, Tensor]] = []
    for network in (model, fast):
        network.get_submodule(place).register_forward_hook(
            lambda module, args, output: seen.append((args[0].detach(), output.detach()))
        )
        network(X)
    for of_model, of_fast in zip(*seen, strict=True):
        torch.testing.assert_close(of_fast, of_model)
    assert mixed(fast) == 0


def test_changes_of_the_pointwise_convolution_count() -> None:
    _, fast = original_and_copy(flat)
    fast(X)
    with torch.no_grad():
        fast[3].weight.mul_(2)
        fast[3].bias.zero_()
    plain = nn.Sequential(*copy.deepcopy(fast)).eval()
    assert mixed(fast) == 1
    torch.testing.assert_close(fast(X), plain(X))
    fast[3] = nn.Conv1d(9, 4, 1)
    plain[3] = fast[3]
    with torch.no_grad():
        assert mixed(fast) == 1
        torch.testing.assert_close(fast(X), plain(X))


def test_modules_put_into_an_inner_sequential_are_run() -> None:
    model, fast = original_and_copy(bordering)
    fast(X)
    for network in (model, fast):
        network[0].append(nn.Tanh())
    assert mixed(fast) == 0
    torch.testing.assert_close(fast(X), model(X).detach())


def test_gradients_of_the_pointwise_convolution() -> None:
    model, fast = original_and_copy(flat)
    fast[3].requires_grad_(True)
    fast(X).square().sum().backward()
    model(X).square().sum().backward()
    torch.testing.assert_close(fast[3].weight.grad, model[3].weight.grad)
    with torch.no_grad():
        assert mixed(fast) == 1


def test_wrong_inputs_fail_as_before() -> None:
    for make in (flat, bordering):
        model, fast = original_and_copy(make)
        for x in (torch.randn(3, 5, 40), X.double(), torch.zeros(3, 4, 0)):
            with pytest.raises((RuntimeError, TypeError)) as expected:
                model(x)
            with pytest.raises(type(expected.value)) as got:
                fast(x)
            assert str(got.value) == str(expected.value)
    _, fast = original_and_copy(lambda: nn.Sequential(*body(), nn.Conv1d(8, 4, 1)))
    with pytest.raises(RuntimeError, match="expected input"):
        fast(X)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("weight", (4, 9, 3)),
        ("bias", (1,)),
        ("bias", (4, 1)),
        ("bias", (7,)),
        ("weight", (0, 9, 1)),
    ],
)
def test_a_weight_of_another_shape_does_what_it_does_in_the_original(name, shape) -> None:
    def outcome(model: nn.Module) -> object:
        try:
            return model(X).shape
        except Exception as error:
            return type(error), str(error)

    model, fast = original_and_copy(flat)
    for network in (model, fast):
        parameter = nn.Parameter(torch.ones(shape), requires_grad=False)
        setattr(network[3], name, parameter)
        if shape[0] == 0:
            network[3].bias = None
    assert outcome(fast) == outcome(model)
