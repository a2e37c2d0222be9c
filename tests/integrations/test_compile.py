"""torch.compile: one graph at the first call, for every pattern, with the bits of eager mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from dst_runs import batches, scheduled, train_step, two_layers
from layers import OPTIONS
from tiny import same
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

import sparseconv as sc

pytestmark = pytest.mark.promise("P7")


@pytest.fixture(autouse=True)
def no_code_compiled_before() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: Callable[..., Any], backend: str = "aot_eager", **options: Any) -> Any:
    """The model in one graph, and the number of graphs that it took."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(model, backend=counter, fullgraph=True, **options), counter


def step(run: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients, of the input too."""
    x = x.detach().requires_grad_()
    y = run(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


def assert_same_step(run: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> None:
    for i, (a, b) in enumerate(zip(step(run, model, x), step(model, model, x), strict=True)):
        assert a.equal(b), f"tensor {i}"


@pytest.mark.tool("torch.compile(fullgraph=True)", "works", "from the first call; bits of eager")
def test_inductor_at_the_first_call(count_cases: Callable[[int], None]) -> None:
    """Two convolutions and what is between them, never run before."""
    model = nn.Sequential(
        sc.SparseConv1d(3, 6, 5, **OPTIONS[2]), nn.ReLU(), sc.SparseConv1d(6, 4, 3, **OPTIONS[3])
    )
    x = torch.randn(2, 3, 20)
    run, counter = compiled(model, "inductor")
    assert_same_step(run, model, x)
    assert counter.frame_count == 1
    count_cases(1)


@pytest.mark.tool("torch.compile(dynamic shapes)", "works", "batch size and length; one graph")
def test_dynamic_shapes(count_cases: Callable[[int], None]) -> None:
    layer = sc.SparseConv1d(4, 6, 5, stride=2, padding=3, padding_mode="replicate")
    run, counter = compiled(layer)
    for n, length in [(2, 20), (3, 21), (7, 64), (16, 3), (2, 150)]:
        x = torch.randn(n, 4, length)
        for dim in (0, 2):
            torch._dynamo.mark_dynamic(x, dim)  # raises if a size is taken for a constant
        y, wanted = run(x), layer(x)
        assert y.equal(wanted)
        with torch.inference_mode():
            assert run(x).equal(wanted)
        grads = (torch.autograd.grad(each.sum(), layer.parameters()) for each in (y, wanted))
        assert all(a.equal(b) for a, b in zip(*grads, strict=True))
    assert counter.frame_count == 2, "one of them without gradients"
    count_cases(5)


@pytest.mark.tool("torch.compile, pattern changed", "works", "recompiles only for another nnz")
def test_a_changed_pattern_is_seen() -> None:
    """Never the old one; and as long as nnz stays, the graph is the same."""
    layer, x = sc.SparseConv1d(4, 6, 5, density=0.3), torch.randn(2, 4, 20)
    run, counter = compiled(layer)

    assert_same_step(run, layer, x)
    for load in (False, False, True):
        before, pattern = layer(x), sc.KernelCSR.random((6, 4, 5), layer.pattern.nnz)
        if load:
            layer.load_state_dict(sc.SparseConv1d(4, 6, 5, pattern=pattern).state_dict())
        else:
            layer.set_pattern(pattern, layer.values.detach().clone())
        assert not layer(x).equal(before), "the change can be seen at all"
        assert_same_step(run, layer, x)
    assert counter.frame_count == 1
    layer.set_pattern(sc.KernelCSR.random((6, 4, 5), 50))
    assert_same_step(run, layer, x)
    layer.stride = (2,)  # a plan that no pattern had before
    assert_same_step(run, layer, x)
    assert counter.frame_count == 3


@pytest.mark.tool("torch.compile and DSTScheduler", "works")
@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_dynamic_sparse_training(grow: str) -> None:
    """The same weights and patterns as in eager mode; one graph, one more with the probes."""
    states, settings = [], {"update_every": 3, "end_step": 100, "grow": grow}
    for compile_ in (False, True):
        model, optimizer, dst = scheduled(two_layers(), "SGD momentum", **settings)
        run, counter = compiled(model) if compile_ else (model, None)
        first, data = model[0].pattern, batches()
        for _ in range(10):
            train_step(run, optimizer, next(data))
            dst.step()
        assert model[0].pattern != first
        states.append(model.state_dict())
    assert same(*states)
    assert counter.frame_count == (2 if grow == "gradient" else 1)


def test_a_pattern_as_an_argument() -> None:
    """The graph takes its two tensors as inputs: it serves any with this shape and nnz."""
    x, bias = torch.randn(2, 3, 20), torch.randn(4)
    function, counter = compiled(sc.sparse_conv1d)
    for _ in range(3):
        pattern, values = sc.KernelCSR.random((4, 3, 5), 20), torch.randn(20)
        assert function(x, values, pattern, bias).equal(sc.sparse_conv1d(x, values, pattern, bias))
    assert counter.frame_count == 1


def forward_mode(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x, x))).tangent


@pytest.mark.tool("torch.compile of torch.func transforms", "works")
def test_transforms_inside_of_a_graph() -> None:
    """An op has no derivative: what the graph cannot hold runs outside of it, and says so."""
    layer, x = sc.SparseConv1d(3, 4, 3, padding=1), torch.randn(2, 3, 8)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()

    functions: list[tuple[Callable[..., Any], Any]] = [
        (lambda x: vmap(layer)(x), x[None]),
        (lambda p: grad(loss)(p)["values"], parameters),
        (lambda x: jvp(layer, (x,), (x,))[1], x),
        (lambda state: functional_call(layer, state, (x,)), layer.state_dict()),
    ]
    for function, argument in functions:
        if function is not functions[-1][0]:
            with pytest.raises(RuntimeError, match=r"inside torch\.func"):
                compiled(function)[0](argument)
            torch._dynamo.reset()
        wanted = function(argument)
        assert wanted.any()
        run = torch.compile(function, backend="aot_eager")
        assert run(argument).equal(wanted)
    other = sc.SparseConv1d(3, 4, 3, padding=1)
    assert run(other.state_dict()).equal(other(x))
    assert run(argument).equal(wanted)


def test_forward_mode_after_a_graph_without_it() -> None:
    layer, x = sc.SparseConv1d(3, 4, 3, padding=1), torch.randn(2, 3, 8)
    run = torch.compile(layer, backend="aot_eager")
    run(x)
    assert forward_mode(run, x).equal(forward_mode(layer, x))
