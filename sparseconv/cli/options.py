"""Options that commands share."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sparseconv import datasets
from sparseconv.dst.update import GROWTHS
from sparseconv.models.dsn import DSN, INITS, PADDINGS
from sparseconv.ops.backends import BACKENDS
from sparseconv.pruning import prune_filters
from sparseconv.rocket.bank import KINDS
from sparseconv.training.recipe import PRECISIONS, Recipe

PROG = "python -m sparseconv"
INTERRUPTED = 130  # exit code: the shell's for SIGINT
_CHOICES = {
    "init": INITS, "padding": PADDINGS, "grow": GROWTHS, "backend": ("auto", *BACKENDS),
    "kernels": KINDS, "precision": PRECISIONS,
}  # fmt: skip


def described(owner: Any) -> dict[str, str]:
    """Return a docstring's description of each argument or attribute."""
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(owner) or "", re.MULTILINE)
    return {name: " ".join(text.replace("``", "").split()).rstrip(".") for name, text in found}


_HELP = described(datasets.load) | described(DSN) | described(Recipe)
_HELP |= described(prune_filters) | {
    "eps": "remove filters whose activation is at most this share of their kernel group's largest",
    "silence": "weight of the loss that silences filters",
}
_HELP["validation"] = "evaluate on the test series after each epoch, without affecting training"
_HELP |= {  # POCKETClassifier's, whose module takes seconds to import
    "kernels": "kind of random kernels",
    "n_kernels": "number of kernels, as aeon counts them",
    "keep": "share of kernels or features to keep, or cv to choose it by 5-fold cross-validation",
    "k": "ridge penalty in the selection, or cv to choose it by cross-validation",
    "n_iter": "iterations of the selection; 1 selects by magnitude",
    "refit": "fit a new ridge classifier on the kept features",
}


def at_least(least: int) -> Callable[[str], int]:
    """Return an argparse type: an integer of at least ``least``."""

    def number(text: str) -> int:
        if (found := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, but got {found}")
        return found

    return number


def number_or_cv(text: str) -> float | str:
    return text if text == "cv" else float(text)


def count(text: str) -> dict[str, Any]:
    """Return the keyword arguments of an option that takes an integer of at least 1."""
    return {"type": at_least(1), "metavar": "X", "help": text}


RUN: dict[str, Any] = {
    "metavar": "RUN", "type": Path, "help": "results folder of `train`, or its checkpoint.pt",
}  # fmt: skip
DATA: dict[str, Any] = {
    "metavar": "NAME_OR_PATH",
    "help": "the run's data set, as `train` accepts it (default: the location recorded in the run)",
}
QUIET: dict[str, Any] = {"action": "store_true", "help": "print only the final summary"}


def refuse_foreign(args: argparse.Namespace, names: Iterable[str], owner: str) -> None:
    """Reject options that ``owner`` does not read."""
    for name in names:
        if name in args:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} does not apply to {owner}; omit it")


def add_setting(group: argparse._ArgumentGroup, name: str, value: Any, default: str = "") -> None:
    """Add an option of a run; unless specified, it is absent from the parsed arguments.

    ``value`` is the default. The help shows ``default`` instead if the value depends on the run.
    """
    shown = "" if value is None else f" (default: {default or value})"
    text = _HELP.get(name, "").replace("%", "%%") + shown
    kwargs: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    if isinstance(value, bool):
        kwargs |= {"action": argparse.BooleanOptionalAction}
    elif name in _CHOICES:
        kwargs |= {"choices": _CHOICES[name]}
    else:
        kind: Any = float if isinstance(value, float) else int
        kwargs |= {"type": number_or_cv if name in ("keep", "k") else kind, "metavar": "X"}
    group.add_argument(f"--{name.replace('_', '-')}", **kwargs)
