"""Installing: what is in the archives, and what runs without a compiler, Triton or aeon."""

from __future__ import annotations

import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import installing
import pytest

pytestmark = pytest.mark.promise("P10")
SLOWLY = "sparseconv uses its slow dense reference"


def sources(*patterns: str) -> set[str]:
    """Files of this tree, as paths from its root."""
    found = (path for pattern in patterns for path in installing.ROOT.glob(pattern))
    return {
        path.relative_to(installing.ROOT).as_posix()
        for path in found
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with both archives, the wheel built without a compiler, and what was printed."""
    folder = tmp_path_factory.mktemp("packages")
    empty = folder / "no programs"
    empty.mkdir()
    return folder, installing.make_archives(folder, PATH=str(empty), CC="", CXX="", FORCE_CUDA="0")


@pytest.fixture(scope="module")
def installed(built: tuple[Path, str]) -> Path:
    """Unpack the wheel into a folder whose name has spaces."""
    folder, _ = built
    target = folder / "site packages of Ünal"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    return target


def test_the_source_archive_is_the_whole_project(built: tuple[Path, str]) -> None:
    with tarfile.open(next(built[0].glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = sources("csrc/**/*", "sparseconv/**/*", "tests/**/*", "benchmarks/**/*", "docs/**/*")
    wanted |= sources("*.md", "Makefile", "LICENSE", "CITATION.cff", "setup.py", "pyproject.toml")
    assert len(wanted) > 200
    assert wanted <= names, sorted(wanted - names)
    made = {name for name in names - wanted if not name.startswith("examples")}
    made = {name for name in made if "." in name and ".egg-info" not in name}
    assert made <= {"PKG-INFO", "setup.cfg", "MANIFEST.in"}, sorted(made)


def test_the_wheel_holds_the_package_alone(built: tuple[Path, str]) -> None:
    folder, said = built
    assert "sparseconv: the C++ extension is left out:" in said
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        names = set(archive.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(info).decode())
    package = {name for name in names if ".dist-info/" not in name}
    assert package == sources("sparseconv/**/*")
    assert any(name.endswith("LICENSE") for name in names - package)
    project = tomllib.loads((installing.ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Requires-Python"] == project["requires-python"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])


def test_without_a_compiler_the_reference_runs_and_says_so_once(
    installed: Path, tmp_path: Path, count_cases: Any
) -> None:
    extras = ("triton", "aeon", "sklearn", "matplotlib", "tqdm")
    result = installing.check(
        [sys.executable], 10, blocked=extras, cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "HOME": "/nonexistent"},
    )  # fmt: skip
    count_cases(10)
    assert Path(result["file"]).is_relative_to(installed)
    assert result["isas"] == [None]
    assert [text.startswith(SLOWLY) for text in result["warnings"]] == [True]
    assert "pip install --no-build-isolation" in result["warnings"][0]
    assert result["backends"].pop("reference") == "available"
    for name, state in result["backends"].items():
        assert "cannot be loaded" in state, name
    assert not {*extras} & {*result["imported"]}
