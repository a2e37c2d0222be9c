"""``torch.compile(model, backend="sparseconv")`` in bfloat16: blocks of channels stay in rows."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from graph_steps import compiled, linear, sparse, step
from random_graphs import RandomGraph
from torch import Tensor, nn

from sparseconv.compiler import CompiledReport, compiled_report
from sparseconv.ops.backends import extension

pytestmark = [
    pytest.mark.promise("P7"),
    pytest.mark.skipif(
        extension is None or not extension.has_block_kernels(),
        reason="needs a CPU with AVX-512 BF16 or AMX",
    ),
]


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs_in_bfloat16(seed: int, count_cases: Callable[[int], None]) -> None:
    graph = RandomGraph(seed, 16).to(torch.bfloat16).train(seed % 2 == 0)
    check_rounded(graph, graph.example(torch.bfloat16))
    count_cases(1)


def check_rounded(model: nn.Module, x: Tensor) -> CompiledReport:
    """Compare a step in bfloat16 with float64: it is as near as torch's, within a factor of two."""
    wide, plain, run = copy.deepcopy(model).double(), copy.deepcopy(model), compiled(model)
    results = [
        step(m, r, x, linear)
        for m, r in ((wide, lambda y: wide(y.double())), (plain, plain), (model, run))
    ]
    exact, rounded, found = ([t.double() for t in r if t.is_floating_point()] for r in results)
    assert [t.shape for t in exact] == [t.shape for t in found]
    assert [t.dtype for t in results[1]] == [t.dtype for t in results[2]]
    size, other, own = (
        torch.stack([(a - b).norm() for a, b in zip(exact, r, strict=True)]).norm()
        for r in ([torch.zeros_like(t) for t in exact], rounded, found)
    )
    assert own <= 2 * other + torch.finfo(torch.bfloat16).eps * size
    return compiled_report(model)


@pytest.mark.parametrize("casts", [False, True])
def test_networks_of_blocks(casts: bool) -> None:
    """Under autocast and of bfloat16; all their layers but the first are in rows."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 40), (40, 32)):
        block = 16 if inputs > 1 else 1
        layers += [sparse(inputs, outputs, 7, block=block), nn.BatchNorm1d(outputs), nn.ReLU()]
    layers += [nn.MaxPool1d(3, 1, 1), nn.Conv1d(32, 16, 1), nn.Dropout(0.0)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())
    if not casts:
        model.to(torch.bfloat16)
    wanted = {"lanes_conv": 3, "lanes_norm": 3, "lanes_max_pool": 1, "lanes_pointwise": 1,
              "lanes_mean": 1, "lanes_dropout": 1}  # fmt: skip
    for batch, length in ((6, 30), (3, 71)):
        x = torch.randn(batch, 1, length, dtype=torch.float32 if casts else torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=casts):
            report = check_rounded(model, x)
        assert {name: report[-1].lanes[name] for name in wanted} == wanted
        assert (report[-1].enters, report[-1].leaves) == (1, 0)
        wide = copy.deepcopy(model).double().eval()
        run = compiled(model.eval())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=casts):
            exact, plain, found = wide(x.double()), model(x).double(), run(x).double()
        # BatchNorm becomes part of the convolutions, whose weights are then rounded.
        bound = 2 * (plain - exact).norm() + torch.finfo(torch.bfloat16).eps * exact.norm()
        assert (found - exact).norm() <= bound
        model.train()
