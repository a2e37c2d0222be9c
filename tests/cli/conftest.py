"""What the tests of the commands share: a data set, a results folder, and how to be refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toy_run import write_data

from sparseconv.cli.main import main
from sparseconv.core.files import claimed


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_data(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "a"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """``refused(words, *expected)``: the command ends with 2 and a last line that says this."""

    def check(words: list[str], *expected: str) -> None:
        capsys.readouterr()
        try:
            code: object = main(words)
        except SystemExit as stop:  # argparse's
            code = stop.code
        assert code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        line = printed.err.splitlines()[-1]
        assert "error: " in line
        for text in expected:
            assert text in line

    return check


@pytest.fixture
def refused_while_claimed(refused: Callable[..., None]) -> Callable[[list[str], Path], None]:
    """``refused_while_claimed(words, out)``: the command is refused while a run writes there."""

    def check(words: list[str], out: Path) -> None:
        with claimed(out), ThreadPoolExecutor(1) as other:
            said = f"another run is writing to {out}; wait for it, or choose another folder"
            other.submit(refused, [*words, "--out", str(out)], said).result()
        assert not list(out.iterdir())

    return check
