"""What every test file shares: one count of the executed cases, and what could not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import parallel
import promises
import pytest
import torch
from engines import ISAS, TWINS, UNITS, Engine, Engines, on_gpu

from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension

# Programs, what only mypy reads, and what test_cuda.py and test_triton.py run in another process.
collect_ignore = [
    "kernels/cuda/cuda_cases.py",
    "packaging/installed_check.py",
    "kernels/triton/triton_cases.py",
    "typing/calls.py",
]

collect_ignore_glob = ["*conftest.py"]  # several modules of one name, without a doctest

UNTESTED = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--campaign", action="store_true", help="run the long versions (see the Makefile)"
    )
    parser.addoption(
        "--share", type=float, default=1.0, help="of their cases, how many a campaign runs (0 to 1)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(parallel)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if not config.getoption("--campaign") and (mark := item.get_closest_marker("campaign")):
            reason = f"only in campaigns (see the Makefile): {mark.args[0]}"
            item.add_marker(pytest.mark.skip(reason=reason))
        promises.note_markers(item)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors only: threads would wait for each other, and for those of other tests."""
    with threads(1):
        yield


@pytest.fixture
def count_cases(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Add to the number of cases that the summary prints: ``count_cases(50)`` after 50 of them."""
    return lambda n: request.node.user_properties.append(("cases", n))


@pytest.fixture(scope="session")
def campaign(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """``campaign(2_000, 200_000)`` is the first in ``make test``, the second in a campaign."""
    if not pytestconfig.getoption("--campaign"):
        return lambda usual, long: usual
    share = pytestconfig.getoption("--share")
    return lambda usual, long: max(usual, round(share * long))


# A GPU on which no backend runs must not pass for none.
ON_GPU = [engine.backend for engine in on_gpu()] or ["none"] * torch.cuda.is_available()


@pytest.fixture
def isas(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Iterator[str]]:
    """Iterate over the instruction sets of the CPU, each forced."""

    def switch() -> Iterator[str]:
        for isa in ISAS:
            monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
            assert extension.isa() == isa
            yield isa

    return switch


@pytest.fixture(params=[*TWINS.values(), *TWINS])
def unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force kernels for blocks: AMX, AVX-512 or one of their twins."""
    if request.param not in UNITS:
        pytest.skip(f"needs a CPU with {request.param}")
    monkeypatch.setenv("SPARSECONV_CPU_ISA", request.param)
    assert extension.isa() == request.param
    return str(request.param)


@pytest.fixture(params=["cpu", *ON_GPU])
def engines(request: pytest.FixtureRequest, isas: Callable[[], Iterator[str]]) -> Engines:
    """Iterate over the kernels of a device: the instruction sets, each forced, or a GPU's."""
    assert request.param != "none", "no backend runs on this GPU"

    def switch() -> Iterator[Engine]:
        if request.param == "cpu":
            yield from (Engine("cpp", isa=isa) for isa in isas())
        else:
            yield from (engine for engine in on_gpu() if engine.backend == request.param)

    return switch


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # None in a worker
    if reporter is None or not promises.is_whole(session):
        return
    session.config.stash[UNTESTED] = promises.without_a_test(reporter.stats)
    if session.config.stash[UNTESTED] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in promises.lines(terminalreporter.stats):
        terminalreporter.write_line(line)
    for promise in config.stash.get(UNTESTED, []):
        terminalreporter.write_line(f"{promise}: NO TEST PASSED", red=True)
    # A skip is not a pass: each reason, and how many tests it kept from running.
    skips = terminalreporter.stats.get("skipped", [])
    for reason, n in Counter(report.longrepr[2] for report in skips).items():
        terminalreporter.write_line(f"{n} not run: {reason.removeprefix('Skipped: ')}")
    if not torch.cuda.is_available():
        terminalreporter.write_line("GPU: not run (torch sees no CUDA device)")
