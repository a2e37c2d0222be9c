"""Run part of a test in a process of its own, so that a crash is seen and not suffered."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
CLEAR = (ValueError, TypeError, RuntimeError, NotImplementedError)


def run_child(script: str, *arguments: object, timeout: float | None = None) -> Any:
    """What ``tests/<script>.py`` prints as JSON; the test fails if it dies."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(TESTS / f"{script}.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, f"the child ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])


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
