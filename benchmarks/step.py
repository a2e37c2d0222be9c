"""``python -m benchmarks.step``: a whole training step of a DSN, sparse beside masked dense.

zero_grad, forward, loss, backward, Adam, masks; univariate series. Every sparse layer is checked
against float64 first. "updating" steps also prune and grow: the recipe does that once in 5 epochs.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv import DSTScheduler, _ops
from sparseconv.bench import timing
from sparseconv.bench.cases import layer_problem
from sparseconv.bench.masked_dense import MaskedDST, masked_copy
from sparseconv.bench.run import WrongResultError, check, cpp_or_reason
from sparseconv.machine import keep_freed_memory, threads
from sparseconv.models import DSN
from sparseconv.report import Table

NEVER = 10**9
KINDS = ("plain", "updating")


def competitors(
    model: DSN, X: Tensor, y: Tensor, *, update_every: int = NEVER
) -> dict[str, Callable[[], None]]:
    """Training steps on one batch, of a copy of ``model`` and of its masked-dense twin.

    Returns:
        ``{"sparse": ..., "masked dense": ...}``, calls that take one step each.
    """
    calls: dict[str, Callable[[], None]] = {}
    for name, twin, make_scheduler in (
        ("sparse", copy.deepcopy(model), DSTScheduler),
        ("masked dense", masked_copy(model), MaskedDST),
    ):
        # fused: Adam's fastest form for either side, and the one that train() uses.
        optimizer = torch.optim.Adam(twin.parameters(), lr=3e-4, fused=True)
        scheduler = make_scheduler(
            twin, optimizer, update_every=update_every, end_step=NEVER, decay_steps=NEVER
        )
        calls[name] = partial(_step, twin.train(), optimizer, scheduler, X, y)
    return calls


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: DSTScheduler | MaskedDST,
    X: Tensor,
    y: Tensor,
) -> None:
    optimizer.zero_grad()
    F.nll_loss(model(X), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    scheduler.step()


def check_layers(model: DSN, batch: int, length: int) -> None:
    """Compare the kernels with float64 on every sparse layer of a model, as it stands.

    Raises:
        WrongResultError: some result is outside its error bound.
    """
    for layer in model.sparse_layers():
        check(_ops, layer_problem(layer, batch, length))


def measure(
    model: DSN, X: Tensor, y: Tensor, *, rounds: int = 20, kinds: Sequence[str] = KINDS
) -> list[dict[str, Any]]:
    """Check the layers, then time the steps; one row per kind.

    Raises:
        WrongResultError: a kernel is wrong; nothing was timed.
    """
    check_layers(model, len(X), X.shape[2])
    rows = []
    for kind in kinds:
        update_every = 1 if kind == "updating" else NEVER
        calls = competitors(model, X, y, update_every=update_every)
        times = timing.interleave(calls, rounds=rounds)
        rows.append(
            {
                "length": X.shape[2],
                "batch": len(X),
                "threads": torch.get_num_threads(),
                "step": kind,
                "sparse_ms": timing.interval(times["sparse"]).median * 1e3,
                "masked_dense_ms": timing.interval(times["masked dense"]).median * 1e3,
                "ratio": timing.ratio(times, "masked dense", "sparse"),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    return Table(
        ("step", "L", "batch", "threads", "sparse ms", "masked dense ms", "masked dense / sparse"),
        [
            (
                row["step"],
                str(row["length"]),
                str(row["batch"]),
                str(row["threads"]),
                f"{row['sparse_ms']:.2f}",
                f"{row['masked_dense_ms']:.2f}",
                str(timing.Interval(*row["ratio"])),
            )
            for row in rows
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[24, 128, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="also write the rows and the machine as JSON")
    arguments = parser.parse_args(argv)
    if reason := cpp_or_reason():
        print(reason, file=sys.stderr)
        return 1
    keep_freed_memory()  # as train() does; either side gains
    torch.manual_seed(0)
    model = DSN(1, 2, init="random")
    rows = []
    for length in arguments.lengths:
        X, y = torch.randn(arguments.batch, 1, length), torch.arange(arguments.batch) % 2
        for count in arguments.threads:
            with threads(count):
                try:
                    rows += measure(model, X, y, rounds=arguments.rounds)
                except WrongResultError as error:
                    print(f"L={length}, {count} threads: {error}", file=sys.stderr)
                    return 1
    write(table(rows), rows, arguments.out)
    return 0


def write(shown: Table, rows: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Print the table and the machine's facts; write both as JSON if a path is given."""
    machine = timing.machine()
    print("\n".join(f"{key}: {value}" for key, value in machine.items()), end="\n\n")
    print(shown.markdown())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": machine, "rows": list(rows)}, indent=1) + "\n")
        print(f"\nwritten to {out}")


if __name__ == "__main__":
    raise SystemExit(main())
