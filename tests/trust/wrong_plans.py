"""Gives the plans of random kernels every wrong argument, and several at once: run by a test.

    python tests/trust/wrong_plans.py SEED COMBINATIONS

Prints, as JSON, how many calls were made, and those that neither raised nor gave right features.
"""

from __future__ import annotations

import json
import math
import random
import sys
from typing import Any

import numpy as np
import torch
from child import limit_memory, refuses
from op_arguments import with_argument, without_memory, wrong_values
from random_banks import Problem, feature_limits
from torch import Tensor

from sparseconv.ops.backends import extension
from sparseconv.rocket import KernelBank
from sparseconv.rocket.bank import ARRAYS

PLANS = {"rocket": extension.RocketPlan, "minirocket": extension.MiniRocketPlan}
# Of one channel and of several, with and without dilation.
PROBLEMS = [Problem(kind, seed) for kind in PLANS for seed in (1, 2, 5, 6)]


def arguments(problem: Problem) -> tuple[Any, ...]:
    """Series, features, and what makes a plan: arrays and the shape of the series."""
    bank, x = problem.bank, torch.from_numpy(problem.series)
    arrays = map(torch.tensor, bank.arrays.values())
    out = torch.full((len(x), bank.n_features), math.nan)
    return (x, out, *arrays, bank.series_channels, bank.series_length)


def run(kind: str, x: Tensor, out: Tensor, *made_of: Any) -> Tensor:
    PLANS[kind](*made_of).features(x, out)
    return out


def is_right(kind: str, x: Tensor, out: Tensor, *made_of: Any) -> bool:
    """Whether these are the features of such a bank; the plan may take more than a bank does."""
    *arrays, channels, length = made_of
    arrays = dict(zip(ARRAYS[kind], arrays, strict=True))
    refused, bank = refuses(lambda: KernelBank(kind, arrays, channels, length, normalise=False))
    if refused or not all(np.isfinite(array).all() for array in bank.arrays.values()):
        return not out.isnan().any()
    lowest, highest = feature_limits(x.numpy(), bank)
    return bool(((lowest <= out.numpy()) & (out.numpy() <= highest)).all())


def main(seed: int, combinations: int) -> None:
    limit_memory(1.0)
    rng, calls, faults = random.Random(seed), 0, []

    def copied(args: tuple[Any, ...]) -> tuple[Any, ...]:  # features are written into one
        return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)

    def attempt(problem: Problem, args: tuple[Any, ...], about: str) -> None:
        nonlocal calls
        calls += 1
        try:
            raised, result = refuses(lambda: run(problem.kind, *args))
            if raised and not isinstance(result, ValueError | TypeError | MemoryError):
                faults.append(f"{problem}: {about} raised {type(result).__name__}: {result}")
            if not raised and not is_right(problem.kind, *args):
                faults.append(f"{problem}: {about} gave something wrong")
        except Exception as error:
            faults.append(f"{problem}: {about}: {type(error).__name__}: {error}")

    for problem in PROBLEMS:
        args = arguments(problem)
        attempt(problem, copied(args), "what is right")
        for i, value in enumerate(args):
            for wrong in wrong_values(value):
                about = f"argument {i} = {str(wrong)[:60]}"
                attempt(problem, copied(with_argument(args, i, wrong)), about)
            for number, nothing in enumerate(without_memory(value)):
                about = f"argument {i} without memory ({number})"
                attempt(problem, with_argument(copied(args), i, nothing), about)
    for number in range(combinations):
        problem = rng.choice(PROBLEMS)
        args = arguments(problem)
        for i in rng.sample(range(len(args)), rng.randint(2, 4)):
            args = with_argument(args, i, rng.choice(wrong_values(args[i])))
        attempt(problem, copied(args), f"combination {number} of seed {seed}")
    print(json.dumps({"calls": calls, "faults": faults}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
