"""``python -m sparseconv info``."""

from __future__ import annotations

import argparse
import os
from importlib import metadata
from pathlib import Path

from sparseconv.cli.options import RUN
from sparseconv.cli.results import unfinished
from sparseconv.measure.machine import environment_info
from sparseconv.ops.backends import available_backends, extension
from sparseconv.rocket import RocketModel
from sparseconv.training.run_folder import MODELS, load_run

OPTIONAL_PACKAGES = ("aeon", "scikit-learn", "tqdm", "matplotlib")
VARIABLES = ("SPARSECONV_BACKEND", "SPARSECONV_CPU_ISA")


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_folder", nargs="?", **RUN)


def run(args: argparse.Namespace) -> int:
    """Show what is installed and can run on this machine, or what a run contains."""
    lines = _installed() if args.run_folder is None else _of_run(args.run_folder)
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:{width}}  {text}" for name, text in lines))
    return 0


def _of_run(folder: Path) -> list[tuple[str, str]]:
    """Describe a run's model, data, and options that differ from the defaults."""
    run = load_run(folder)
    config, data = run.config, run.config["data"]
    options = {
        name: value
        for section, defaults in MODELS[config.get("model", "dsn")].items()
        for name, value in config[section].items()
        if name in defaults and value != defaults[name]
    }
    if isinstance(run.model, RocketModel):
        model = str(run.model.bank)
    else:
        cost = run.model.cost(data["n_timepoints"])
        model = f"DSN with {cost.params:,} parameters, from epoch {run.epoch}"
    shown = ", ".join(f"{name}={value}" for name, value in options.items())
    classes = ", ".join(map(str, data["classes"]))
    return [
        ("model", model),
        *[("unfinished", text) for text in [unfinished(run, folder)] if text],
        ("data", f"{data.get('name')}, {data['n_channels']} x {data['n_timepoints']}: "
                 f"{data['n_train']} series for training, {data.get('n_test')} for testing"),
        ("classes", classes if len(classes) < 80 else f"{len(data['classes'])}"),
        *[("pruned by", pruning["criterion"]) for pruning in [config.get("pruning")] if pruning],
        ("options", shown or "the defaults"),
        ("trained on", f"{config['machine'].get('cpu')}, threads: {config['machine']['threads']}"),
    ]  # fmt: skip


def _installed() -> list[tuple[str, str]]:
    facts = environment_info()
    own = ", ".join(f"{name} {facts[name]}" for name in ("sparseconv", "torch", "python"))
    installed = {found.name: found.version for found in metadata.distributions()}
    missing = "not installed: pip install 'sparseconv[tsc]'"
    return [
        ("versions", own),
        ("processor", f"{facts['cpu']} ({facts['system']})"),
        *([] if extension is None else [("ISAs", ", ".join(extension.isas()))]),
        ("threads", f"torch uses {facts['threads']} of {facts['cores']} cores"),
        *((f"backend {name}", state) for name, state in available_backends().items()),
        *((name, installed.get(name, missing)) for name in OPTIONAL_PACKAGES),
        *((name, os.environ[name]) for name in VARIABLES if name in os.environ),
    ]
