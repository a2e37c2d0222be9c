"""Random networks through the passes of the backend: what they compute does not change.

``torch.compile`` takes a second to trace such a network, so that functions are recorded as they are
called: Dynamo records the same ones, which the other tests of this folder try.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from graph_steps import Run, check, check_rounded, isa_without_blocks, step
from random_graphs import RandomGraph
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from sparseconv.compiler import sparseconv
from sparseconv.compiler.recorder import Recorder
from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension
from sparseconv.testing import error_bound

pytestmark = pytest.mark.promise("P7")
NETWORKS = 300


def lowered(model: nn.Module, x: Tensor) -> Run:
    """Return what the backend makes of a model for inputs of this shape."""
    twin = copy.deepcopy(model)  # recording runs it, which changes statistics
    inputs = [x.clone(), *twin.parameters(), *twin.buffers()]
    with Recorder(inputs) as recorder:
        y = twin(inputs[0])
    held = [*model.parameters(), *model.buffers()]
    graph = recorder.returning(y)
    run = sparseconv(GraphModule(graph.owning_module, graph), [inputs[0], *held])
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
