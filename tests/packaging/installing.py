"""Making what pip installs, and running interpreters that see nothing else."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from child import ROOT, run

CHECK = Path(__file__).with_name("installed_check.py")
# What lies in a working tree and in no release.
NOT_SOURCES = (
    ".*", "build", "dist", "site", "runs", "demo", "*.egg-info", "*.so", "__pycache__"
)  # fmt: skip


# Builds both archives in the folder that it is given, from the source tree that it runs in; the
# wheel from the unpacked source archive.
BUILD = """
import os, shutil, sys
from pathlib import Path
import setuptools.build_meta as build

folder, settings = Path(sys.argv[1]), sys.argv[2:]
shutil.unpack_archive(folder / build.build_sdist(str(folder)), folder / "unpacked")
os.chdir(next((folder / "unpacked").iterdir()))
os.environ.update(setting.split("=", 1) for setting in settings)
build.build_wheel(str(folder))
"""


def make_archives(
    folder: Path, python: Sequence[Path | str] = (sys.executable,), **env: str
) -> str:
    """Build a source archive of this tree and a wheel from it; what the builds printed."""
    copy = folder / "tree"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    settings = [f"{name}={value}" for name, value in env.items()]
    return run([*python, "-c", BUILD, folder, *settings], cwd=copy)


def check(
    python: Sequence[Path | str],
    cases: int,
    *,
    blocked: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run ``installed_check.py`` away from the sources; what it reports."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SPARSECONV", "PYTHONPATH"))}
    env = clean | dict(env or {})
    said = run([*python, CHECK, str(cases), *blocked], env=env, **options)
    line = next(line for line in said.splitlines() if line.startswith("{"))
    result: dict[str, Any] = json.loads(line)
    return result
