"""The whole network beside the same network dense: training, inference, latency, epochs, memory.

The rival is the network as mask-based sparse training runs it (``masked_dense``), and the same
under ``torch.compile``. Before anything is timed, every sparse layer is checked against float64,
and what runs inference also by its outputs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseconv import _ops, datasets, optimize_for_inference
from sparseconv.bench import parts, timing
from sparseconv.bench.cases import layer_problem
from sparseconv.bench.dense_network import Network, inference_variants
from sparseconv.bench.masked_dense import masked_copy
from sparseconv.bench.network_steps import NEVER, compiled, training_bytes, training_steps
from sparseconv.bench.network_tables import RIVALS, parts_table, table
from sparseconv.bench.run import WrongResultError, check, cpp_or_reason
from sparseconv.machine import keep_freed_memory, threads
from sparseconv.models import DSN
from sparseconv.recipe import Recipe

__all__ = ["MODES", "RIVALS", "parts_table", "run", "table", "training_row"]

MODES = ("train", "update", "inference", "latency", "epoch")
LENGTHS, THREADS, BATCH = (24, 128, 512), (1, 2), 16
# n_cases, n_channels, n_timepoints and classes of the training sets: used where aeon is missing.
EPOCHS_OF = {"ACSF1": (100, 1, 1460, 10), "JapaneseVowels": (270, 12, 25, 9)}

Call = Callable[[], object]
Row = dict[str, Any]


def run(
    *,
    lengths: Sequence[int] = LENGTHS,
    threads: Sequence[int] = THREADS,
    rounds: int = 20,
    modes: Sequence[str] = MODES,
    rivals: Sequence[str] = RIVALS,
    batch: int = BATCH,
    build: Callable[[int, int], DSN] | None = None,
    with_parts: bool = True,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure the network in every mode, at every length, with every number of threads.

    Args:
        lengths: samples of a series, for all modes but ``"epoch"``, which takes data sets.
        threads: torch's threads.
        rounds: pairs of neighbours; an epoch takes a fifth of them, at least 3.
        modes: of ``MODES``. ``"train"`` is zero_grad, forward, loss, backward, Adam, masks;
            ``"update"`` prunes and grows in each step as well; ``"latency"`` is ``"inference"`` of
            one series.
        rivals: of ``RIVALS``; an epoch is not compiled. One that cannot run is left out of its
            row, which gives the reason under ``"absent"``.
        batch: series in a batch.
        build: makes the network from its numbers of channels and classes; None takes a DSN with an
            evolved pattern.
        with_parts: also profile where the time goes, and the memory of a training step.
        on_row: told of each row as it is there.

    Raises:
        ValueError: a mode or rival that there is not.
        WrongResultError: a kernel or network is wrong; nothing of it was timed.
    """
    for kind, given, known in (("mode", modes, MODES), ("rival", rivals, RIVALS)):
        if unknown := set(given) - set(known):
            raise ValueError(f"{kind} must be one of {known}, but got {sorted(unknown)}")
    keep_freed_memory()  # as train() does; either side gains
    rows = []
    with torch.random.fork_rng(devices=[]):
        for measure in _measurements(
            lengths, rounds, modes, rivals, batch, build or _evolved, with_parts
        ):
            for count in threads:
                with _threads(count):
                    torch.manual_seed(0)
                    rows.append(measure())
                if on_row is not None:
                    on_row(rows[-1])
    return rows


_threads = threads  # run() has an argument of this name


def _evolved(in_channels: int, n_classes: int) -> DSN:
    return DSN(in_channels, n_classes, init="random")


def _measurements(
    lengths: Sequence[int],
    rounds: int,
    modes: Sequence[str],
    rivals: Sequence[str],
    batch: int,
    build: Callable[[int, int], DSN],
    with_parts: bool,
) -> Iterator[Callable[[], Row]]:
    settings: Any = {"rivals": rivals, "build": build, "with_parts": with_parts}
    for mode in modes:
        if mode == "epoch":
            few = max(3, rounds // 5)
            yield from (partial(_epoch, name, rounds=few, **settings) for name in EPOCHS_OF)
            continue
        for length in lengths:
            if mode in ("train", "update"):
                yield partial(_training, mode, length, batch, rounds=rounds, **settings)
            else:
                size = 1 if mode == "latency" else batch
                yield partial(_inference, mode, length, size, rounds=rounds, **settings)


# Training


def training_row(
    mode: str,
    model: DSN,
    X: Tensor,
    y: Tensor,
    *,
    rounds: int = 20,
    rivals: Sequence[str] = ("masked_dense",),
    with_parts: bool = False,
) -> Row:
    """Measure the training step of a model, which is left as it is, on one batch.

    Raises:
        WrongResultError: a kernel is wrong; nothing was timed.
    """
    check_layers(model, len(X), X.shape[2])
    torch.compiler.reset()  # or the eighth shape of a run is not compiled any more
    every = 1 if mode == "update" else NEVER
    calls: dict[str, Call] = {}
    absent = {}
    for name in ("sparse", *rivals):
        try:
            step = training_steps(model, [name], update_every=every)[name]
            step(X, y)  # compiles
        except Exception as error:
            if name != "dense_compiled":
                raise
            absent[name] = _first_line(error)
        else:
            calls[name] = partial(step, X, y)
    row = _row(mode, model, X, calls, rounds, absent)
    if with_parts:
        row["peak_bytes"] = {
            name: training_bytes(model, name, X, y) for name in calls if name != "dense_compiled"
        }
        # Compiled code has no operations to see.
        row["parts"] = {
            name: parts.measure(call) for name, call in calls.items() if name != "dense_compiled"
        }
    return row


def _training(
    mode: str, length: int, batch: int, *, build: Callable[[int, int], DSN], **settings: Any
) -> Row:
    X, y = torch.randn(batch, 1, length), torch.arange(batch) % 2
    return training_row(mode, build(1, 2), X, y, **settings)


def _epoch(
    name: str,
    *,
    rounds: int,
    rivals: Sequence[str],
    build: Callable[[int, int], DSN],
    with_parts: bool,
) -> Row:
    """All batches of a training set, drawn as ``train()`` draws them; the pattern stays."""
    n_cases, channels, length, classes = EPOCHS_OF[name]
    try:
        data = datasets.load(name)
        X, y = torch.as_tensor(data.X_train), torch.as_tensor(data.y_train)
        source = name
    except RuntimeError:  # aeon is not installed
        X, y = torch.randn(n_cases, channels, length), torch.arange(n_cases) % classes
        source = f"random series of the sizes of {name}"
    model = build(X.shape[1], int(y.max()) + 1)
    batch = Recipe().batch_size_for(len(X))
    check_layers(model, batch, X.shape[2])
    names = ("sparse", *(rival for rival in rivals if rival == "masked_dense"))

    def epoch(step: Callable[[Tensor, Tensor], None]) -> None:
        for index in torch.split(torch.randperm(len(X)), batch):
            step(X[index], y[index])

    steps = training_steps(model, names)
    calls: dict[str, Call] = {name: partial(epoch, step) for name, step in steps.items()}
    row = _row("epoch", model, X[:batch], calls, rounds, {}, warmup=1)
    return row | {"data": source, "n_cases": len(X)}


# Inference


def _inference(
    mode: str,
    length: int,
    batch: int,
    *,
    rounds: int,
    rivals: Sequence[str],
    build: Callable[[int, int], DSN],
    with_parts: bool,
) -> Row:
    torch.compiler.reset()
    model = build(1, 2)
    for _ in range(10):  # statistics as training leaves them
        model(torch.randn(max(batch, 8), 1, length))
    model.eval()
    x = torch.randn(batch, 1, length)
    check_layers(model, batch, length)
    exact = masked_copy(model).double()(x.double()).detach()
    makers: dict[str, dict[str, Callable[[], Network]]] = {
        "sparse": {"optimize_for_inference": lambda: optimize_for_inference(model)},
        "masked_dense": inference_variants(model, x),
        "dense_compiled": {
            "freezing": lambda: compiled(masked_copy(model).eval(), freezing=True),
            "plain": lambda: compiled(masked_copy(model).eval()),
        },
    }
    calls: dict[str, Call] = {}
    absent, settings = {}, {}
    with torch.inference_mode():
        for name in ("sparse", *rivals):
            right, wrong = {}, {}
            for setting, make in makers[name].items():
                try:
                    network = make()
                    _check_output(network(x), exact)
                except Exception as error:
                    if name == "sparse":
                        raise
                    wrong[setting] = _first_line(error)
                else:
                    right[setting] = partial(network, x)
            if right:
                settings[name] = _fastest(right)
                calls[name] = right[settings[name]]
            else:
                absent[name] = "; ".join(f"{key}: {reason}" for key, reason in wrong.items())
        row = _row(mode, model, x, calls, rounds, absent) | {"settings": settings}
        if with_parts:  # TorchScript's operations are called otherwise: the plain network's
            row["parts"] = {"sparse": parts.measure(calls["sparse"])}
            if "masked_dense" in calls:
                plain = partial(makers["masked_dense"]["plain"](), x)
                row["parts"]["masked_dense"] = parts.measure(plain)
    return row


def _fastest(calls: Mapping[str, Call]) -> str:
    if len(calls) == 1:
        return next(iter(calls))
    times = timing.interleave(calls, rounds=5)
    return min(times, key=lambda name: timing.interval(times[name]).median)


def _check_output(got: Tensor, exact: Tensor) -> None:
    """A network's float32 outputs beside the float64 ones, within torch's own tolerances."""
    try:
        torch.testing.assert_close(got.double(), exact, rtol=1.3e-6, atol=1e-5)
    except AssertionError as error:
        raise WrongResultError(f"the network's outputs are wrong: {error}") from None


# Rows


def check_layers(model: DSN, batch: int, length: int) -> None:
    """Compare the kernels with float64 on every sparse layer of a model, as it stands.

    Raises:
        WrongResultError: some result is outside its error bound.
    """
    for layer in model.sparse_layers():
        check(_ops, layer_problem(layer, batch, length))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _row(
    mode: str,
    model: DSN,
    X: Tensor,
    calls: Mapping[str, Call],
    rounds: int,
    absent: Mapping[str, str],
    *,
    warmup: int = 2,
) -> Row:
    times = timing.interleave(calls, rounds=rounds, warmup=warmup)
    return {
        "model": type(model).__name__,
        "mode": mode,
        "length": X.shape[2],
        "batch": X.shape[0],
        "in_channels": X.shape[1],
        "threads": torch.get_num_threads(),
        "ms": {name: timing.interval(samples).median * 1e3 for name, samples in times.items()},
        "ratio": {
            name: list(timing.ratio(times, name, "sparse")) for name in times if name != "sparse"
        },
        "absent": dict(absent),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sparseconv.bench.network", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=RIVALS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--quick", action="store_true", help="2 lengths, 1 thread, 5 rounds, 1 rival, no epochs"
    )
    parser.add_argument("--parts", action="store_true", help="also print where the time goes")
    parser.add_argument("--out", type=Path, help="also write the rows and the machine as JSON")
    arguments = parser.parse_args(argv)
    if reason := cpp_or_reason():
        print(reason, file=sys.stderr)
        return 1
    options = {
        name: getattr(arguments, name)
        for name in ("lengths", "threads", "modes", "rivals", "rounds")
    }
    if arguments.quick:
        options |= {"lengths": (24, 128), "threads": (1,), "rounds": 5, "modes": MODES[:4],
                    "rivals": RIVALS[:1]}  # fmt: skip
    try:
        rows = run(**options, on_row=lambda row: print(_progress(row), file=sys.stderr))
    except WrongResultError as error:
        print(error, file=sys.stderr)
        return 1
    machine = timing.machine()
    print("\n".join(f"{key}: {value}" for key, value in machine.items()), end="\n\n")
    print(table(rows).markdown())
    if arguments.parts:
        print("\n" + parts_table(rows).markdown())
    if arguments.out is not None:
        document = {"schema": 1, "machine": machine, "peaks": [], "rows": [], "growth": [],
                    "network": rows}  # fmt: skip
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"\nwritten to {arguments.out}")
    return 0


def _progress(row: Mapping[str, Any]) -> str:
    times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in row["ms"].items())
    reasons = "".join(f"; without {name}: {reason}" for name, reason in row["absent"].items())
    return f"{row['mode']}, L = {row['length']}, {row['threads']} threads: {times}{reasons}"


if __name__ == "__main__":
    raise SystemExit(main())
