"""What every test file shares: one count of the executed cases, and what could not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from engines import ISAS, Engine, Engines, on_gpu

from sparseconv._backends import extension

collect_ignore = ["triton_cases.py"]  # test_triton.py runs it, in a process of its own
CASES = pytest.StashKey[int]()


@pytest.fixture
def count_cases(pytestconfig: pytest.Config) -> Callable[[int], None]:
    """Add to the number of cases that the summary prints: ``count_cases(50)`` after 50 of them."""

    def count(n: int) -> None:
        pytestconfig.stash[CASES] = pytestconfig.stash.get(CASES, 0) + n

    return count


@pytest.fixture(params=["cpu", "cuda"])
def engines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engines:
    """Iterate over the kernels of a device: the instruction sets, each forced, or the backends."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: torch sees no CUDA device")
    gpu = on_gpu() if request.param == "cuda" else []
    assert gpu or request.param == "cpu", "no backend runs on this GPU"

    def switch() -> Iterator[Engine]:
        yield from gpu
        for isa in ISAS if request.param == "cpu" else []:
            monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
            assert extension is not None
            assert extension.isa() == isa
            yield Engine("cpp", isa=isa)

    return switch


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    terminalreporter.write_line(f"cases executed: {config.stash.get(CASES, 0)}")
    # A skip is not a pass: each reason, and how many tests it kept from running.
    skips = terminalreporter.stats.get("skipped", [])
    for reason, n in Counter(report.longrepr[2] for report in skips).items():
        terminalreporter.write_line(f"{n} not run: {reason.removeprefix('Skipped: ')}")
    if not torch.cuda.is_available():
        terminalreporter.write_line("GPU: not run (torch sees no CUDA device)")
