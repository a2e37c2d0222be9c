"""What the tests of the commands share: a data set, a results folder, and how to be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from quick_figures import quick_figures  # noqa: F401 (a fixture of every test here)
from toy_run import write_data

from sparseconv.cli.main import main


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_data(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "a"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``command(*words)``: what a command prints; it has to succeed."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main(list(map(str, words))) == 0
        return capsys.readouterr().out

    return run


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
