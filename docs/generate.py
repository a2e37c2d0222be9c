"""Write what pages include of all that was measured, from ``benchmarks/results``.

Tables and figures of measured results on the site are made here, and pages include them. What
``paper.md`` writes about its tables rounds some of their numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks import plots, readme
from benchmarks.edge import measure as edge
from benchmarks.edge import report as edge_report
from benchmarks.gpu import tables as gpu
from benchmarks.lines import read_lines
from benchmarks.paper import report
from benchmarks.studies import blocks, classifiers, densities, published_networks, unpruned
from sparseconv.bench import document, tables
from sparseconv.measure.table import threads_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
KERNELS_XEON = RESULTS / "random_kernels-xeon.json"


def write_all(folder: Path) -> None:
    """Write every file that a page includes; the same results produce the same files."""
    bench = readme.recorded()
    pictures = [path.relative_to(ROOT / "docs") for path in plots.write_all(bench, folder)]
    captions = plots.captions(bench["rows"])
    parts: dict[str, Callable[[], str]] = {
        "measured": readme.section,
        "gpu": lambda: gpu.section(RESULTS / "gpu.json"),
        "first_screen": readme.first_screen,
        "ratios": readme.ratios,
        "paper": lambda: report.recorded(folder, "full"),
        "networks": densities.section,
        "machine": lambda: f"Measured on {readme.where(bench['machine'])}.",
        "break_even": lambda: "\n\n".join(
            figure(path, f"{threads_text(threads)}. {captions['break_even']}")
            for threads, path in enumerate(pictures[1:], 1)
        ),
        "saved": lambda: figure(pictures[0], captions["saved"]),
        "dense_wins": lambda: readme.faster_baselines(bench["rows"]).markdown(),
        "published_networks": published_networks.section,
        "unpruned": unpruned.section,
        "edge": lambda: edge_report.section(read_lines(edge.RESULTS), folder / "edge.png"),
        "random_kernels": lambda: random_kernels(folder),
        "random_kernels_xeon": kernels_elsewhere,
        "pocket": lambda: report.recorded(folder, "pocket"),
        "filters": lambda: report.recorded(folder, "filters"),
        "blocks": lambda: report.recorded(folder, "blocks"),
        "blocks_networks": blocks.section,
        "silence": lambda: report.recorded_table("silence", "silenced"),
    }
    for name, make in parts.items():
        _write(folder / f"{name}.md", make())


def figure(path: Path, caption: str) -> str:
    """Return a drawn file with its caption, in Markdown."""
    return f"```{{figure}} {path}\n:alt: {caption}\n\n{caption}\n```"


def random_kernels(folder: Path) -> str:
    """Return the times of the features, and of classifiers that use them."""
    bench = readme.recorded()
    picture = classifiers.draw(folder / "classifiers.png").relative_to(ROOT / "docs")
    caption = (
        "Random kernels: aeon's classifiers (orange), ours (blue), and DSN (green; hollow because "
        "it was timed on another machine)"
    )
    return "\n\n".join(
        (
            "Microseconds to compute the features of one series, with 10 000 kernels. "
            "aeon's transforms were compiled and timed interleaved in the same process, with the "
            "same kernels and threads. Of peak: multiply-adds inside the series, relative to what "
            f"the CPU can do from registers. {readme.where(bench['machine'])}.",
            "\n\n".join(
                f"{threads_text(count)}:\n\n"
                + tables.random_kernels(
                    row
                    for row in bench["random_kernels"]
                    if row["threads"] == count and (count == 1 or row["kept"] == 1)
                ).markdown()
                for count in sorted({row["threads"] for row in bench["random_kernels"]})
            ),
            figure(picture, caption),
            classifiers.section(),
        )
    )


def kernels_elsewhere() -> str:
    """Return the times of the features on another machine, with all kernels."""
    bench = document.read(KERNELS_XEON)
    whole = (row for row in bench["random_kernels"] if row["kept"] == 1)
    return "\n\n".join(
        (
            f"{readme.where(bench['machine'])}.",
            tables.random_kernels(whole).markdown(),
        )
    )


def _write(path: Path, text: str) -> None:
    text = text.rstrip() + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # an unchanged page is kept
        path.write_text(text, encoding="utf-8")
