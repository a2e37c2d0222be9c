"""The two trees that are compared: a checked out commit and the present one, each with a build."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CompareError(RuntimeError):
    """The two trees could not be compared; the text says why and what to do."""


def git(repo: Path, *words: str) -> str:
    """Run git, and return what it prints.

    Raises:
        CompareError: with the words of git.
    """
    done = subprocess.run(["git", *words], cwd=repo, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompareError(f"git {' '.join(words)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def worktree(repo: Path, ref: str) -> Iterator[Path]:
    """Check a commit out into a new folder, which is removed afterwards, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="sparseconv-base-")).resolve()
    try:
        commit = git(repo, "rev-parse", "--verify", "--end-of-options", ref + "^{commit}")
        git(repo, "worktree", "add", "--quiet", "--detach", str(folder / "tree"), commit)
        yield folder / "tree"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # Makes git forget every tree whose folder is gone, also one that it had only begun.
        git(repo, "worktree", "prune")


def build(tree: Path, into: Path) -> Path:
    """Build a tree's package into another folder; returns what to import it from.

    Raises:
        CompareError: with the end of the build's output.
    """
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", into / "temp",
               "--build-lib", into / "lib"]  # fmt: skip
    done = subprocess.run(
        command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    # setup.py leaves the extension out if it cannot be compiled, and succeeds.
    if done.returncode != 0 or not list((into / "lib" / "sparseconv").glob("_C*.so")):
        raise CompareError(f"{tree} does not build a package with kernels:\n{done.stdout[-3000:]}")
    return into / "lib"
