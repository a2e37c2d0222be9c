"""A layer compiled by ``torch.compile`` and exported by ``torch.export``, beside the eager call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.bench.cases import layer_problem
from sparseconv.bench.run import TURN, check_bounds, first_line, times_and_ratios
from sparseconv.measure import timing
from sparseconv.measure.machine import threads
from sparseconv.nn.conv import SparseConv1d

# In and out channels, taps and density; then series and samples: the layer of a DSN, where the work
# of a call outweighs what surrounds it, and a layer where it does not.
LAYERS = {
    "dsn_16x128": ((47, 141, 39, 0.13), 16, 128),
    "dsn_16x24": ((47, 141, 39, 0.13), 16, 24),
    "dsn_1x128": ((47, 141, 39, 0.13), 1, 128),
    "tiny_2x16": ((4, 8, 5, 0.5), 2, 16),
}


def measure(
    count: int, *, names: Sequence[str] = tuple(LAYERS), rounds: int
) -> list[dict[str, Any]]:
    """Time the forward pass and both passes of each layer: eager, compiled and exported.

    Args:
        count: torch's threads.
        names: of ``LAYERS``.
        rounds: pairs of neighbours.

    Returns:
        One dict for each layer and computation. Its ratios are the time of the other call over the
        eager one. What cannot run is left out, with the reason under ``"absent"``.

    Raises:
        WrongResultError: an output or a gradient is wrong; nothing of that row was timed.
    """
    with torch.random.fork_rng(devices=[]), threads(count):
        torch.manual_seed(0)
        return [row for name in names for row in _rows(name, count, rounds)]


def _rows(name: str, count: int, rounds: int) -> list[dict[str, Any]]:
    (in_channels, out_channels, taps, density), batch, length = LAYERS[name]
    layer = SparseConv1d(
        in_channels, out_channels, taps, padding=taps // 2, density=density, bias=False
    )
    problem = layer_problem(layer, batch, length)
    x, grad = problem.x.requires_grad_(), problem.grad

    def forward(module: nn.Module) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"fprop": module(x)}

    def training(module: nn.Module) -> dict[str, Tensor]:
        y = module(x)
        dgrad, wgrad = torch.autograd.grad(y, [x, *module.parameters()], grad)
        return {"fprop": y, "dgrad": dgrad, "wgrad": wgrad}

    torch.compiler.reset()  # or the second shape of a layer would be compiled as a dynamic one
    modules: dict[str, Any] = {
        "sparse": layer,
        "compiled": torch.compile(layer),
        "exported": torch.export.export(layer, (problem.x,)).module(),
    }
    rows = []
    for computation, call in (("forward", forward), ("training", training)):
        calls, absent = {}, {}
        for way, module in modules.items():
            try:
                found = call(module)
            except Exception as error:  # torch's compilers raise errors of many types
                absent[way] = first_line(error)
                continue
            check_bounds(found, problem)
            calls[way] = partial(call, module)
        times = timing.interleave(calls, rounds=rounds, least_seconds=TURN)
        rows.append(
            {"case": name, "computation": computation, "batch": batch, "length": length}
            | {"threads": count, "rounds": rounds, "absent": absent, **times_and_ratios(times)}
        )
    return rows
