"""What pages include of everything that was measured, from ``benchmarks/results``.

No figure on the site is typed by hand: a page that speaks of one includes a file made here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import published_networks, readme
from sparseconv.bench import plots, tables
from sparseconv.bench.document import threads_text
from sparseconv.ops.backends import NEVER_ON_A_GPU

ROOT = Path(__file__).parent.parent


def write_all(folder: Path) -> None:
    """Write every file that a page includes; the same results give the same files."""
    bench = readme.recorded()
    pictures = [path.relative_to(ROOT / "docs") for path in plots.write_all(bench, folder)]
    captions = plots.captions(bench["rows"])
    parts: dict[str, Callable[[], str]] = {
        "measured": measured,
        "accuracy": readme.accuracies,
        "machine": lambda: _machine(bench["machine"]),
        "break_even": lambda: "\n\n".join(
            figure(path, f"{threads_text(threads)}. {captions['break_even']}")
            for threads, path in enumerate(pictures[1:], 1)
        ),
        "saved": lambda: figure(pictures[0], captions["saved"]),
        "dense_wins": lambda: tables.faster_baselines(bench["rows"]).markdown(),
        "reliability": reliability,
        "published_networks": networks,
        "never_on_a_gpu": never_on_a_gpu,
    }
    for name, make in parts.items():
        _write(folder / f"{name}.md", make())


def measured() -> str:
    """Every table of the recorded results, with links that hold on the site."""
    return readme.section().replace(
        "[bench.json](benchmarks/results/bench.json)", "`benchmarks/results/bench.json`"
    )


def figure(path: Path, caption: str) -> str:
    """A drawn file with its caption."""
    return f"```{{figure}} {path}\n:alt: {caption}\n\n{caption}\n```"


def never_on_a_gpu() -> str:
    """What ``info`` says of each kernel, while it is so."""
    if not NEVER_ON_A_GPU:
        return ""
    lines = [f"- {name}: {instead}" for name, instead in NEVER_ON_A_GPU.items()]
    return "\n".join(["**They have never run on a GPU,** and no speed is claimed:", "", *lines])


def reliability() -> str:
    """RELIABILITY.md, whose title the page has already."""
    path = ROOT / "RELIABILITY.md"
    if not path.exists():
        return "No record yet: `make reliability` runs the campaigns and writes it."
    title, _, text = path.read_text(encoding="utf-8").partition("\n")
    text = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"`\1`", text)  # files are not on the site
    return text if title.startswith("# ") else f"{title}\n{text}"


def networks() -> str:
    """Networks of other packages, pruned and converted."""
    if not published_networks.RESULTS.exists():
        return "Not measured yet: `python -m benchmarks.published_networks` does."
    return published_networks.table()


def _machine(machine: Mapping[str, str]) -> str:
    return (
        f"Measured on {machine['cpu']}, {machine['cores']} cores, {machine['isa']}, torch "
        f"{machine['torch']}, {machine['date']}, commit {machine['commit']}."
    )


def _write(path: Path, text: str) -> None:
    text = text.rstrip() + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # an unchanged page is kept
        path.write_text(text, encoding="utf-8")
