"""``python -m sparseconv info``: what is installed and what can run here."""

from __future__ import annotations

import argparse
import os
from typing import Any

from sparseconv.measure import machine
from sparseconv.ops.backends import available_backends


def add_to(commands: Any) -> None:
    """Add the command to the command line's parser."""
    command = commands.add_parser("info", help="say what is installed and what can run here")
    command.set_defaults(run=_info)


def _info(_: argparse.Namespace) -> int:
    facts, versions = machine.environment_info(), machine.optional_versions()
    missing = [name for name in machine.OPTIONAL_PACKAGES if name not in versions]
    lines = [
        (
            "versions",
            ", ".join(f"{name} {facts[name]}" for name in ("sparseconv", "torch", "python")),
        ),
        ("processor", f"{facts['cpu']} ({facts['system']})"),
        ("ISA", machine.isa()),
        ("threads", f"torch uses {facts['threads']} of {facts['cores']} cores"),
        *((f"backend {name}", state) for name, state in available_backends().items()),
        ("GPU kernels", "never yet run on a GPU; tested on a CPU, compiled for sm_80 and sm_90"),
        *versions.items(),
        *((name, "not installed: pip install 'sparseconv[tsc]'") for name in missing),
        *((name, os.environ[name]) for name in machine.VARIABLES if name in os.environ),
    ]
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:{width}}  {text}" for name, text in lines))
    return 0
