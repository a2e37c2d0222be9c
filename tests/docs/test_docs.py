"""README, docs and examples: all code runs, and the names, guarantees and tools exist."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promises
import pytest
import torch
from child import ROOT, TESTS
from quick_figures import quick_figures  # noqa: F401 (a fixture of every test here)

import sparseconv as sc
from sparseconv.cli.main import main
from sparseconv.measure.timing import LEAST_ROUNDS
from sparseconv.profiling import stopwatch

# A reader trains for longer: one epoch of a small network shows that a command runs to its end.
SMALL = {"train": ["--epochs", "1", "--nf", "4", "--depth", "1", "--quiet"],
         "train pocket": ["--n-kernels", "100", "--quiet"],
         "prune": ["--epochs", "1", "--quiet"]}  # fmt: skip


_ran: set[str] = set()  # commands that one page or another has shown


class Snippet(NamedTuple):
    """One fenced block: ``python`` or ``sh``, its text, where it starts, and what it prints."""

    language: str
    text: str
    place: str
    output: str  # the page's ``text`` block below, or empty


def snippets(path: Path) -> Iterator[Snippet]:
    """The fenced blocks of a Markdown file, also those inside directives."""
    page = path.read_text(encoding="utf-8")
    block = r"^```(python|sh)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?"
    for found in re.finditer(block, page, re.DOTALL | re.MULTILINE):
        line = page.count("\n", 0, found.start()) + 2
        yield Snippet(found[1], found[2], f"{path.relative_to(ROOT)}:{line}", found[3] or "")


def comparable(text: str) -> list[str]:
    """The lines that no measurement decides; of a row of a report its layer and density."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip("|:- ")]
    rows = (line.startswith("|") and not line.startswith("| layer") for line in lines)
    return [
        "|".join(line.split("|")[:3]) if row else line
        for line, row in zip(lines, rows, strict=True)
    ]


def run_snippet(block: Snippet, scope: dict[str, Any]) -> None:
    """Run a block: Python in ``scope``, commands of this package in this process, each once."""
    if block.language == "python":
        exec(compile(re.sub(r"\bepochs=\d+", "epochs=1", block.text), block.place, "exec"), scope)
        return
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:3] != ["python", "-m", "sparseconv"]:
            check_foreign(words, f"{block.place}: {line}")
        elif line not in _ran:
            _ran.add(line)
            kind = words[3] + (" pocket" if "pocket" in line else "")
            assert main(words[3:] + SMALL.get(kind, [])) == 0, f"{block.place}: {line}"


def check_foreign(words: list[str], place: str) -> None:
    """What a test cannot run must at least exist: a target of the Makefile, a file."""
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE), place
    elif words[0] == "jupytext":
        assert (ROOT / words[-1]).is_file(), place
    else:
        assert words[:2] == ["pip", "install"], f"{place}: nothing here runs this"


DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NEEDS = {
    "cli": ["aeon"],
    "dsn": ["aeon", "onnx", "onnxscript", "onnxruntime"],
    "when-it-pays": ["aeon"],
    "export": ["onnx", "onnxscript", "onnxruntime"],
}
# Blocks that import these are left out where they are missing, and the page's others run.
OPTIONAL = ("lightning", "safetensors", "tensorboard", "huggingface_hub")
README = ROOT / "README.md"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WITH_SNIPPETS = [page for page in (README, *PAGES) if any(snippets(page))]


@pytest.fixture
def quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh folder, and a measurement takes a second, however long a reader's takes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSECONV_QUICK", "1")
    measure, short = stopwatch.interleave, {"rounds": LEAST_ROUNDS, "least_seconds": 1e-6}
    monkeypatch.setattr(stopwatch, "interleave", lambda calls, **how: measure(calls, **how | short))


@pytest.mark.tool("safetensors", "works", "docs/recipes.md")
@pytest.mark.tool("PyTorch Lightning: Trainer.fit", "works", "a callback, in docs/recipes.md")
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: page.stem)
def test_every_snippet_runs(page: Path, quickly: None, count_cases: Any, capsys: Any) -> None:
    for package in NEEDS.get(page.stem, []):
        pytest.importorskip(package)
    torch.manual_seed(0)
    scope: dict[str, Any] = {"__name__": "snippet"}
    absent = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    left_out = set()
    for block in snippets(page):
        if lacking := [
            name for name in absent if re.search(rf"(from|import) .*{name}", block.text)
        ]:
            left_out.update(lacking)
            continue
        capsys.readouterr()
        if page == README:  # each of its blocks runs alone
            scope = {"__name__": "snippet"}
        run_snippet(block, scope)
        shown, printed = map(comparable, (block.output, capsys.readouterr().out))
        assert printed[: len(shown)] == shown, block.place
        count_cases(1)
    if left_out:
        pytest.skip(f"its other blocks ran; not installed: {', '.join(sorted(left_out))}")


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_every_example_runs(script: Path, quickly: None, capsys: Any) -> None:
    pytest.importorskip("aeon")
    runpy.run_path(str(script), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) > 3


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_every_example_makes_a_notebook(script: Path) -> None:
    jupytext = pytest.importorskip("jupytext", reason="the test extra has jupytext, missing here")
    kinds = [cell.cell_type for cell in jupytext.read(script).cells]
    assert len(kinds) > 2
    assert kinds == ["markdown", "code"] * (len(kinds) // 2), "each cell of code has a heading"


def entries() -> list[str]:
    """The full names that the API pages document."""
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    return re.findall(r"auto(?:class|function|exception):: (\S+)|py:(?:module|data):: (\S+)", text)


def test_every_public_name_is_in_the_api() -> None:
    documented = {name for pair in entries() for name in pair if name}
    public = {f"sparseconv.{name}" for name in sc.__all__}
    assert public <= documented
    index = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| \[`sc\.([\w.]+)`\]", index, re.MULTILINE))
    assert listed >= {name for name in sc.__all__ if callable(getattr(sc, name))}
    assert listed >= {"training.train", "training.Recipe", "datasets.load", "models.DSN"}
    found = []
    for name in documented - {"sparseconv"}:
        # What is documented must exist, under this name, in a package and not in a file of one.
        module, _, attribute = name.rpartition(".")
        assert module.count(".") < 2, f"{name}: export it from its package"
        assert hasattr(importlib.import_module(module), attribute), name
        found.append(getattr(importlib.import_module(module), attribute))
    for package in pkgutil.iter_modules(sc.__path__, "sparseconv."):
        if package.ispkg and package.name != "sparseconv.ops":  # for torch's dispatcher
            held = importlib.import_module(package.name)
            for name in getattr(held, "__all__", ()):
                own = f"{package.name}.{name}" in documented
                # Elsewhere in the package, or among the names of sparseconv itself.
                assert own or any(getattr(held, name) is x for x in found), (package.name, name)


FILES = {path.stem: path for path in TESTS.rglob("*.py")}


def rows(page: str, header: str) -> list[list[str]]:
    """The cells of a page's table whose header line begins so."""
    table = (DOCS / page).read_text(encoding="utf-8").partition(header)[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()[2:]
    ]


def test_every_promise_names_files_that_stand_for_it() -> None:
    table = rows("reliability.md", "| | guarantee |")
    assert tuple(row[0] for row in table) == promises.PROMISES
    for promise, *_, files in table:
        for name in re.findall(r"`(\w+)`", files):
            assert f'promise("{promise}")' in FILES[name].read_text(encoding="utf-8"), name


def markers() -> Iterator[tuple[str, str]]:
    """Name and verdict of every ``tool`` marker that is written out."""
    for path in FILES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "tool":
                words = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                if len(words) == len(node.args) >= 2:
                    yield words[0], words[1]


def test_every_tool_is_where_its_test_says() -> None:
    columns = zip(*[row[1:] for row in rows("tools.md", "| | works |")], strict=True)
    cells = (" ".join(column).replace("`", "") for column in columns)
    said = dict(zip(promises.VERDICTS, cells, strict=True))
    found = list(markers())
    assert len(found) > 85
    for name, verdict in found:
        assert name.split(": ")[-1] in said[verdict], (name, verdict)
