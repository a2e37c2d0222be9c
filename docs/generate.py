"""What pages include of everything that was measured, from ``benchmarks/results``.

No figure on the site is typed by hand: a page that speaks of one includes a file made here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks import readme
from benchmarks.paper import published_networks, report
from sparseconv.bench import plots, tables
from sparseconv.measure.table import threads_text

ROOT = Path(__file__).parent.parent


def write_all(folder: Path) -> None:
    """Write every file that a page includes; the same results give the same files."""
    bench = readme.recorded()
    pictures = [path.relative_to(ROOT / "docs") for path in plots.write_all(bench, folder)]
    captions = plots.captions(bench["rows"])
    parts: dict[str, Callable[[], str]] = {
        "measured": readme.section,
        "paper": lambda: report.recorded(folder),
        "machine": lambda: f"Measured on {readme.where(bench['machine'])}.",
        "break_even": lambda: "\n\n".join(
            figure(path, f"{threads_text(threads)}. {captions['break_even']}")
            for threads, path in enumerate(pictures[1:], 1)
        ),
        "saved": lambda: figure(pictures[0], captions["saved"]),
        "dense_wins": lambda: tables.faster_baselines(bench["rows"]).markdown(),
        "published_networks": networks,
    }
    for name, make in parts.items():
        _write(folder / f"{name}.md", make())


def figure(path: Path, caption: str) -> str:
    """A drawn file with its caption."""
    return f"```{{figure}} {path}\n:alt: {caption}\n\n{caption}\n```"


def networks() -> str:
    """Networks of other packages, pruned and converted."""
    if not published_networks.RESULTS.exists():
        return "Not measured yet: `python -m benchmarks.paper.published_networks` does."
    return published_networks.table()


def _write(path: Path, text: str) -> None:
    text = text.rstrip() + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # an unchanged page is kept
        path.write_text(text, encoding="utf-8")
