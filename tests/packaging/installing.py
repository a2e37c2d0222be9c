"""Making what pip installs, and running interpreters that see nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CHECK = Path(__file__).with_name("installed_check.py")
# What lies in a working tree and in no release.
NOT_SOURCES = (
    ".*", "build", "dist", "site", "runs", "demo", "generated", "*.egg-info", "*.so", "__pycache__"
)  # fmt: skip


def run(command: Sequence[str | Path], **options: Any) -> str:
    """Run a command to its end; what it printed. A failure shows all of it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout + done.stderr


def make_sdist(folder: Path) -> Path:
    """Build the source archive of this tree, without touching the tree."""
    copy = folder / "tree"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    make = f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})"
    run([sys.executable, "-c", make], cwd=copy)
    return next(folder.glob("*.tar.gz"))


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack a source archive; its one folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def make_wheel(
    source: Path, folder: Path, python: Path | str = sys.executable, **env: str
) -> tuple[Path, str]:
    """Build a wheel as the README says; its path and what the build printed."""
    said = run(
        [python, "-m", "pip", "wheel", "--verbose", "--no-build-isolation", "--no-deps",
         "--no-index", "--wheel-dir", folder, source],
        env=os.environ | env,
    )  # fmt: skip
    return next(folder.glob("*.whl")), said


def check(
    python: Sequence[Path | str],
    cases: int,
    *,
    blocked: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run ``installed_check.py`` away from the sources; what it says of the installed package."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SPARSECONV", "PYTHONPATH"))}
    env = clean | dict(env or {})
    said = run([*python, CHECK, str(cases), *blocked], env=env, **options)
    line = next(line for line in said.splitlines() if line.startswith("{"))
    result: dict[str, Any] = json.loads(line)
    return result
