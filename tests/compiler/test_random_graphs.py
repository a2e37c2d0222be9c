"""Random networks through the passes of the backend: what they compute does not change.

``torch.compile`` takes a second to trace such a network, so that functions are recorded as they are
called: Dynamo records the same ones, which the other tests of this folder try.
"""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_steps import Run, check, check_rounded, isa_without_blocks, step
from random_graphs import RandomGraph
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from sparseconv.compiler import sparseconv
from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension
from sparseconv.testing import error_bound

pytestmark = pytest.mark.promise("P7")
NETWORKS = 300


class Recorder(TorchFunctionMode):
    """Records torch's functions in a graph, whose inputs are these tensors."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.graph, self.root = Graph(), nn.Module()
        self.nodes: dict[int, Node] = {}
        self.kept: list[Tensor] = []  # or others would get their ids and their memory
        for i, tensor in enumerate(inputs):
            self.note(self.graph.placeholder(f"input_{i}"), tensor)

    def note(self, node: Node, value: Any) -> None:
        node.meta["example_value"] = value
        if isinstance(value, Tensor):
            self.nodes[id(value)] = node
            self.kept.append(value)

    def node_of(self, tensor: Tensor) -> Node:
        if id(tensor) not in self.nodes:  # a pattern's
            name = f"constant_{len(self.nodes)}"
            self.root.register_buffer(name, tensor)
            self.note(self.graph.get_attr(name), tensor)
        return self.nodes[id(tensor)]

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.__name__, kwargs or {}
        found = func(*args, **kwargs)
        parts = found if isinstance(found, tuple | list) else ()
        if name == "__get__" or not isinstance((*parts, found)[0], Tensor):
            return found  # a question, as for the shape
        read = tree_map_only(Tensor, self.node_of, (args, kwargs))
        if name == "__getitem__":
            node = self.graph.call_function(operator.getitem, *read)
        elif getattr(Tensor, name, None) is func:
            node = self.graph.call_method(name, *read)
        else:
            node = self.graph.call_function(func, *read)
        self.note(node, found)
        for i, part in enumerate(parts):
            self.note(self.graph.call_function(operator.getitem, (node, i)), part)
        return found


def lowered(model: nn.Module, x: Tensor) -> Run:
    """Return what the backend makes of a model for inputs of this shape."""
    twin = copy.deepcopy(model)  # recording runs it, which changes statistics
    inputs = [x.clone(), *twin.parameters(), *twin.buffers()]
    with Recorder(inputs) as recorder:
        y = twin(inputs[0])
    recorder.graph.output(recorder.node_of(y))
    for node in reversed(list(recorder.graph.nodes)):
        if node.target is operator.getitem and not node.users:
            recorder.graph.erase_node(node)
    held = [*model.parameters(), *model.buffers()]
    run = sparseconv(GraphModule(recorder.root, recorder.graph), [inputs[0], *held])
    return lambda x: run(x, *held)


def network(seed: int) -> tuple[RandomGraph, Tensor]:
    """Half of them in eval mode; two thirds of those with gradients."""
    in_rows = seed % 6 == 5 and extension is not None and extension.has_block_kernels()
    dtype = torch.bfloat16 if in_rows else (torch.float32, torch.float64)[seed % 3 == 1]
    graph = RandomGraph(seed, 16 if in_rows else 1).to(dtype)
    return graph.train(seed // 2 % 2 == 0), graph.example(dtype)


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_random_graphs(seed: int, count_cases: Callable[[int], None]) -> None:
    """Outputs, all gradients and statistics; float64 tells wrong from rounded."""
    graph, x = network(seed)
    if x.dtype == torch.bfloat16:
        check_rounded(graph, x, lowered(graph, x))
    else:
        check(graph, x, len(graph.program), lowered(graph, x))
    count_cases(1)


@pytest.mark.parametrize("seed", range(0, NETWORKS, 3))
def test_random_graphs_under_autocast(
    seed: int, count_cases: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single weights have no rule in bfloat16, and are computed in float32."""
    if seed % 2:  # no kernels of blocks: bfloat16 is never in rows
        monkeypatch.setenv("SPARSECONV_CPU_ISA", isa_without_blocks())
    graph = RandomGraph(seed).train(seed // 2 % 2 == 0)
    x = graph.example(torch.float32)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        check_rounded(graph, x, lowered(graph, x))
    count_cases(1)


@pytest.mark.parametrize("seed", range(0, NETWORKS, 5))
def test_random_graphs_without_gradients(seed: int, count_cases: Callable[[int], None]) -> None:
    """BatchNorm becomes part of convolutions."""
    graph, x = network(seed)
    with torch.no_grad():
        found = lowered(graph.eval(), x)(x).double()
        rounded, exact = graph(x).double(), graph.double()(x.double())
    terms = torch.tensor(x.shape[0] * x.shape[2] * len(graph.program))
    bound = error_bound(exact, exact.abs().max(), terms, x.dtype).max()
    assert (found - exact).abs().max() <= bound + 4 * (rounded - exact).abs().max()
    count_cases(1)


@pytest.mark.parametrize("seed", range(0, NETWORKS, 5))
def test_threads_change_no_bit(seed: int, count_cases: Callable[[int], None]) -> None:
    """They may change those of torch's operations, which a graph keeps."""
    graph, x = network(seed)
    of_torch = {
        f"layers.{i}.weight" for i, (kind, *_) in enumerate(graph.program) if kind == "dense"
    }
    names = ["output", "input", *dict(graph.named_parameters())]
    results = []
    for run, number in itertools.product((graph, lowered(graph, x)), (1, 2)):
        with threads(number):
            results.append(step(graph, run, x)[: len(names)])
    for name, *eager, one, two in zip(names, *results, strict=True):
        changes = name in of_torch or not eager[0].equal(eager[1])
        assert changes or one.equal(two), name
    count_cases(1)


@pytest.mark.parametrize("seed", [1, 181, 271])
def test_compiled_autograd(seed: int) -> None:
    """It calls the gradients' ops as autograd does, and may add gradients in another order."""
    graph, x = network(seed)
    run = lowered(graph, x)
    n_results = 2 + len(list(graph.parameters()))  # statistics move on
    wanted = step(graph, run, x)[:n_results]
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        found = step(graph, run, x)[:n_results]
    assert counters["compiled_autograd"]["captures"] == 1
    torch.testing.assert_close(found, wanted)
