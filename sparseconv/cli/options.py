"""The options of a run, each spelled once, and what the commands share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparseconv.dst.update import GROWTHS
from sparseconv.models.dsn import INITS, PADDINGS
from sparseconv.ops.backends import BACKENDS
from sparseconv.training.run_folder import CONFIG_NAME, DATA, NETWORK, RECIPE, read_config

PROG = "python -m sparseconv"
INTERRUPTED = 130  # exit code: the shell's for SIGINT


_CHOICES = {"init": INITS, "padding": PADDINGS, "grow": GROWTHS, "backend": ("auto", *BACKENDS)}


_HELP = {
    "sparsity": "inactive share of each kernel group's region; 0 is the dense network",
    "nf": "channels between modules; a module has three times as many",
    "kernel_size": "taps of the sparse convolutions",
    "depth": "number of modules",
    "n_groups": "kernel groups of growing reach; 1 for none",
    "init": "first pattern: the first taps of every kernel, or at random",
    "padding": "right-replicate looks forward; centred-zeros is the paper's for UCR 2018",
    "backend": "what computes the sparse convolutions",
    "epochs": "passes over the training set",
    "lr": "Adam's learning rate at the start",
    "lr_min": "where its cosine over the epochs ends",
    "weight_decay": "Adam's L2 penalty",
    "batch_size": "series in a batch; by default a tenth of the training set, from 2 to 16",
    "update_every_epochs": "epochs between two changes of the pattern",
    "update_every_steps": "optimizer steps between two changes, instead of epochs",
    "skip_step_at_update": "leave out the optimizer step where the pattern changes",
    "decay_share": "share of all steps over which the pruned share falls",
    "prune_fraction": "share of active weights moved by the first update",
    "prune_floor": "share moved by the last updates",
    "grow": "which weights become active: random, of largest gradient, or never any",
    "seed": "of the first weights, of the order of batches and of growth",
    "nan_to_zero": "read missing values as 0, as the paper does on UCR 85",
}


def add_option(group: argparse._ArgumentGroup, name: str, default: Any) -> None:
    """One option; left out of the parsed arguments unless it is given."""
    flag = "--" + name.replace("_", "-")
    shown = "" if default is None else f" (default: {default})"
    kwargs: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _HELP[name] + shown}
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
            "--out, or leave --resume away"
        )
    config = read_config(out)
    settings = {
        name: config[section][name]
        for section, options in (("data", DATA), ("network", NETWORK), ("recipe", RECIPE))
        for name in options
    }
    for name, value in given.items():
        if value != settings[name]:
            raise ValueError(
                f"the run in {out} has {name}={settings[name]}, but --{name.replace('_', '-')} "
                f"asks for {value}; leave the option away, or start a new run with --out"
            )
    return settings | {"threads": int(config["machine"]["threads"])}
