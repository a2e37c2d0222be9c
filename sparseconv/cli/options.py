"""The options of a run, described where they are defined, and what the commands share."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from sparseconv import datasets
from sparseconv.dst.update import GROWTHS
from sparseconv.models.dsn import DSN, INITS, PADDINGS
from sparseconv.ops.backends import BACKENDS
from sparseconv.rocket.bank import KINDS
from sparseconv.training.recipe import Recipe

PROG = "python -m sparseconv"
INTERRUPTED = 130  # exit code: the shell's for SIGINT

_CHOICES = {
    "init": INITS, "padding": PADDINGS, "grow": GROWTHS, "backend": ("auto", *BACKENDS),
    "kernels": KINDS,
}  # fmt: skip


def described(owner: Any) -> dict[str, str]:
    """Return a docstring's text about each argument or attribute."""
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(owner) or "", re.MULTILINE)
    return {name: " ".join(text.replace("``", "").split()).rstrip(".") for name, text in found}


_HELP = described(datasets.load) | described(DSN) | described(Recipe)
_HELP |= {  # POCKETClassifier's, whose module takes seconds to import
    "kernels": "kind of random kernels",
    "n_kernels": "how many are drawn, as aeon counts them",
    "keep": "what to keep: a share (0.35), a number (500), or cv, which chooses by 5 folds",
    "k": "weight of the ridge in the selection, or cv",
    "n_iter": "iterations of the selection; 1: by magnitude",
    "refit": "fit a new ridge classifier on what is kept",
}


def at_least(least: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number that is not below ``least``."""

    def number(text: str) -> int:
        if (found := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, but got {found}")
        return found

    return number


def number_or_cv(text: str) -> int | float | str:
    """Read a number, or ``cv``, as an argparse type."""
    if text == "cv":
        return text
    return float(text) if "." in text or "e" in text.lower() else int(text)


def add_threads(command: argparse.ArgumentParser, default: str) -> None:
    """Add ``--threads``; its help calls the default this."""
    text = f"threads for torch (default: {default})"
    command.add_argument("--threads", type=at_least(1), metavar="X", help=text)


def refuse_foreign(args: argparse.Namespace, names: Iterable[str], owner: str) -> None:
    """Refuse options that were given though ``owner`` does not read them."""
    for name in names:
        if name in args:
            raise ValueError(f"--{name.replace('_', '-')} is not for {owner}; omit it")


def add_option(
    group: argparse._ArgumentGroup, name: str, default: Any, said: str | None = None
) -> None:
    """Add an option, which is left out of the parsed arguments unless it is given.

    ``said``: what the help calls the default, where that depends on the run.
    """
    flag = "--" + name.replace("_", "-")
    shown = "" if default is None else f" (default: {said or default})"
    text = _HELP.get(name, "").replace("%", "%%") + shown
    kwargs: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    if isinstance(default, bool):
        kwargs |= {"action": argparse.BooleanOptionalAction}
    elif name in _CHOICES:
        kwargs |= {"choices": _CHOICES[name]}
    else:
        kind: Any = float if isinstance(default, float) else int
        kwargs |= {"type": number_or_cv if name in ("keep", "k") else kind, "metavar": "X"}
    group.add_argument(flag, **kwargs)
