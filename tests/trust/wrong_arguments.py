"""Calls every op with every wrong argument, and with several at once: run by a test.

    python tests/trust/wrong_arguments.py SEED COMBINATIONS

Prints, as JSON, how many calls were made, and those that neither raised nor gave a right result.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import torch
from child import limit_memory, refuses
from op_arguments import (
    GEOMETRIES,
    arguments,
    with_argument,
    without_memory,
    wrong_values,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

OPS = torch.ops.sparseconv


def all_arguments() -> list[tuple[str, tuple[Any, ...]]]:
    """A correct argument list for every op: one for each geometry."""
    return [(name, args) for g in GEOMETRIES for name, args in arguments(g).items()]


def call(name: str, *args: Any) -> Any:
    return getattr(OPS, name)(*args)


def outputs(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def is_right(name: str, args: tuple[Any, ...], result: Any, of_numbers: bool) -> bool:
    """Another correct call: the shapes that the compiler is told, and all of it written."""
    op = getattr(OPS, name)
    if any(isinstance(a, Tensor) and a.is_meta for a in args):
        return all(r.is_meta for r in outputs(result))  # nothing was computed
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
        told = outputs(op(*fakes))
    return all(
        # Memory that was never written holds NaN.
        r.shape == t.shape and r.dtype == t.dtype and (of_numbers or bool(r.isfinite().all()))
        for r, t in zip(outputs(result), told, strict=True)
    )


def changes_numbers(value: Any) -> bool:
    """Whether a wrong one may change what is computed: a plan of another geometry, a negative eps.

    Such a plan can point at scratch memory that this call has not filled.
    """
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    return not isinstance(value, str | bool)


def main(seed: int, combinations: int) -> None:
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    rng = random.Random(seed)
    limit_memory(1.0)
    calls, faults = 0, []

    def attempt(name: str, args: tuple[Any, ...], about: str, of_numbers: bool) -> None:
        nonlocal calls
        calls += 1
        try:
            raised, result = refuses(lambda: call(name, *args))
            if not raised and not is_right(name, args, result, of_numbers):
                faults.append(f"{name}: {about} gave something wrong")
        except Exception as error:
            faults.append(f"{name}: {about}: {type(error).__name__}: {error}")

    def copied(args: tuple[Any, ...]) -> tuple[Any, ...]:  # some ops write into their arguments
        return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)

    everything = all_arguments()
    for name, args in everything:
        before = [r.clone() for r in outputs(call(name, *copied(args)))]
        for i, value in enumerate(args):
            for wrong in wrong_values(value):
                about = f"argument {i} = {str(wrong)[:60]}"
                attempt(name, with_argument(copied(args), i, wrong), about, changes_numbers(value))
            for number, nothing in enumerate(without_memory(value)):
                about = f"argument {i} without memory ({number})"
                # Ops refuse to mix fake tensors with others, in torch's words.
                if not isinstance(nothing, FakeTensor):
                    attempt(name, with_argument(copied(args), i, nothing), about, False)
        after = outputs(call(name, *copied(args)))
        if not all(a.equal(b) for a, b in zip(before, after, strict=True)):
            faults.append(f"{name}: a later call gives something else")
    for number in range(combinations):
        name, args = rng.choice(everything)
        args, of_numbers = copied(args), False
        for i in rng.sample(range(len(args)), min(len(args), rng.randint(2, 4))):
            of_numbers |= changes_numbers(args[i])
            wrong = rng.choice(wrong_values(args[i]))
            if not (isinstance(wrong, Tensor) and wrong.is_meta):  # which turns to no kernel
                args = with_argument(args, i, wrong)
        attempt(name, args, f"combination {number} of seed {seed}", of_numbers)
    print(json.dumps({"calls": calls, "faults": faults}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
