"""What to compare: layers, calls to a tiny layer, training steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench.cases import Case
from benchmarks.bench.masked import masked_copy
from benchmarks.bench.networks import check_float32
from benchmarks.bench.run import check_bounds, exact_results
from sparseconv.models import DSN

# Short and long series, many channels and one, a scattered pattern and a dense run.
LAYERS = ("dsn_evolved_L24", "dsn_evolved_L128", "dsn_prefix_L512", "first_layer_L128")
TINY = Case(
    name="tiny layer", suite="own", n=1, in_channels=4, out_channels=8, kernel_size=5, length=16,
    padding="same", density=0.5,
)  # fmt: skip


class Row(NamedTuple):
    name: str
    kind: str  # of the worker's
    data: dict[str, Any]  # that the worker gets
    computations: tuple[str, ...]
    check: Callable[[Mapping[str, Tensor]], object]  # of the results; raises WrongResultError


def layer(case: Case) -> Row:
    problem = case.build()
    wanted = exact_results(problem)
    data = {name: getattr(problem, name) for name in ("x", "values", "grad")}
    data |= {"mask": problem.pattern.to_mask(), "options": case.options}
    kind = "layer"
    if case is TINY:
        calls = ("forward", "forward, recording gradients", "forward, compiled")
        kind, wanted = "call", dict.fromkeys(calls, wanted["fprop"])
    return Row(case.name, kind, data, tuple(wanted), lambda found: check_bounds(found, wanted))


def step(length: int) -> Row:
    """Describe a training step of the paper's network on 16 series."""
    generator = torch.Generator().manual_seed(0)
    network = {"in_channels": 1, "n_classes": 10}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DSN(**network)
    data = {
        "network": network,
        "state": model.state_dict(),
        "x": torch.randn(16, 1, length, generator=generator),
        "y": torch.randint(10, (16,), generator=generator),
    }
    exact = masked_copy(model).double().train()(data["x"].double())
    loss = F.nll_loss(exact, data["y"]).detach()

    def check(results: Mapping[str, Tensor]) -> None:
        check_float32("the loss is", results["training step"], loss)

    return Row(f"DSN, L = {length}", "step", data, ("training step",), check)


def read_layers(path: Path) -> list[Case]:
    """Read a user's layers: a JSON list of objects; see ``compare --help``."""
    cases: dict[str, Case] = {}
    where = "a JSON list of layers"
    try:
        for i, entry in enumerate(json.loads(path.read_text(encoding="utf-8"))):
            where = f"entry {i}"
            case = Case(**{"n": 16, "suite": "own", **entry})
            if isinstance(case.padding, list):
                case = replace(case, padding=tuple(case.padding))
            case.build()
            cases[case.name] = case
    except (OSError, ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise RuntimeError(f"--cases {path}, {where}: {error}") from error
    return list(cases.values())
