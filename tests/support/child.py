"""Run part of a test in another process, so that a crash is seen and not suffered."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
# What another process needs to import what pytest does.
PYTHONPATH = os.pathsep.join(
    map(str, (ROOT, *sorted({path.parent for path in TESTS.rglob("*.py")})))
)
CLEAR = (ValueError, TypeError, RuntimeError, NotImplementedError)


def run(command: Sequence[Any], **options: Any) -> str:
    """Run a command to its end; what it printed. A failure shows all of it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout + done.stderr


def run_child(script: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Any:
    """What the script of this name in ``tests`` prints as JSON; the test fails if it dies.

    It is about the CPU, and finds no GPU: with one, no memory can be limited, and torch does not
    differentiate in forks.
    """
    (file,) = TESTS.rglob(f"{script}.py")
    found = {"PYTHONPATH": PYTHONPATH, "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(file), *map(str, arguments)],
        env=os.environ | found, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"the child ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def preloaded(compiler: str) -> dict[str, str]:
    """The environment of a process that loads libraries built under AddressSanitizer."""

    def path(name: str) -> str:
        find = [compiler, f"-print-file-name={name}"]
        return subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()

    # The second for exceptions to pass through.
    libraries = f"{path('libasan.so')} {path('libstdc++.so')}"
    return {"LD_PRELOAD": libraries, "ASAN_OPTIONS": "detect_leaks=0"}


def refuses(call: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether the call raised, and what it returned or raised; a message must say something."""
    try:
        return False, call()
    except MemoryError as error:
        return True, error
    except CLEAR as error:
        if len(str(error)) < 10:
            raise AssertionError(f"{type(error).__name__} without a word of why") from error
        return True, error


def limit_memory(gigabytes: float) -> None:
    """Let allocations beyond what is mapped now fail, as they do on a small machine."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = mapped + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
