"""The options of a run, described where they are defined, and what the commands share."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparseconv import datasets
from sparseconv.dst.update import GROWTHS
from sparseconv.models.dsn import DSN, INITS, PADDINGS
from sparseconv.ops.backends import BACKENDS
from sparseconv.training.recipe import Recipe
from sparseconv.training.run_folder import CONFIG_NAME, SECTIONS, read_config

PROG = "python -m sparseconv"
INTERRUPTED = 130  # exit code: the shell's for SIGINT

_CHOICES = {"init": INITS, "padding": PADDINGS, "grow": GROWTHS, "backend": ("auto", *BACKENDS)}


def described(owner: Any) -> dict[str, str]:
    """What a docstring says of each argument or attribute, as plain text."""
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(owner) or "", re.MULTILINE)
    return {name: " ".join(text.replace("``", "").split()).rstrip(".") for name, text in found}


_HELP = described(datasets.load) | described(DSN) | described(Recipe)


def add_option(
    group: argparse._ArgumentGroup, name: str, default: Any, said: str | None = None
) -> None:
    """One option; left out of the parsed arguments unless it is given.

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
        kwargs |= {"type": float if isinstance(default, float) else int, "metavar": "X"}
    group.add_argument(flag, **kwargs)


def resumed_settings(out: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run in ``out``; those given again must agree."""
    if not (out / CONFIG_NAME).exists():
        raise ValueError(
            f"nothing to resume: {out / CONFIG_NAME} does not exist; name the folder of a run with "
            "--out, or omit --resume"
        )
    config = read_config(out)
    if config.get("model", "dsn") != "dsn":
        raise ValueError(f"{out} holds a {config['model']} model, which has no epochs to resume")
    settings = {name: config[key][name] for key, options in SECTIONS.items() for name in options}
    for name, value in given.items():
        if value != settings[name]:
            raise ValueError(
                f"the run in {out} has {name}={settings[name]}, but --{name.replace('_', '-')} "
                f"asks for {value}; omit the option, or start a new run with --out"
            )
    return settings | {"threads": int(config["machine"]["threads"])}
