"""``python -m docs.generate``: write what was measured, and the names of the API, into the pages.

Tables and pictures come from ``benchmarks/results``. A part is written between two lines of its
page, ``<!-- begin NAME: ... -->`` and ``<!-- end NAME -->``. What ``paper.md`` writes about its
tables rounds some of their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

from benchmarks import front_page, plots, readme, recording
from benchmarks.bench import tables
from benchmarks.edge import measure as edge
from benchmarks.edge import report as edge_report
from benchmarks.gpu import tables as gpu
from benchmarks.paper import report
from benchmarks.recording import read_lines
from benchmarks.studies import (
    blocks,
    classifiers,
    densities,
    dilation,
    networks,
    published_networks,
    unpruned,
)
from docs import graph_picture, names
from sparseconv.measure.table import threads_text
from sparseconv.report import figures

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
KERNELS_XEON = RESULTS / "random_kernels-xeon.json"
PICTURES = ROOT / "docs" / "static"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
# With these settings, and shortened, equal results yield equal files.
SVG = {"svg.hashsalt": "sparseconv", "svg.fonttype": "none"}
PART = re.compile(r"^(<!-- begin (\w+): .* -->\n).*?^(<!-- end \2 -->)$", re.DOTALL | re.MULTILINE)


def parts(folder: Path = PICTURES) -> Mapping[str, Callable[[], str]]:
    """Return functions that make each part; some draw pictures into ``folder``."""
    bench = readme.recorded()
    where = readme.where(bench["machine"])
    on_gpu = recording.read(RESULTS / "gpu.json")
    captions = plots.captions(bench["rows"])
    pictures = cache(lambda: plots.write_all(bench, folder))
    return {
        "measured": lambda: f"One run of `python -m sparseconv bench` on {where}.",
        "kernels": lambda: readme.kernels(bench["rows"]).markdown(),
        "worst": lambda: readme.worst(bench["rows"]).markdown(),
        "network": lambda: tables.table(bench["network"], tables.NETWORK_COLUMNS).markdown(),
        "gpu": lambda: gpu.about(on_gpu),
        "gpu_layers": lambda: gpu.layers(on_gpu["rows"]).markdown(),
        "gpu_steps": lambda: gpu.steps(on_gpu["rows"]).markdown(),
        "gpu_checks": lambda: gpu.checks(on_gpu["checks"]).markdown(),
        "pitch": lambda: front_page.pitch(bench),
        "picture": lambda: speed_by_density(folder / "speed-by-density.svg"),
        "gains": lambda: front_page.gains(bench),
        "dense_faster": lambda: front_page.dense_faster(bench, readme.lost(bench["rows"])),
        "classifiers": lambda: f"{front_page.tools().markdown()}\n\n{front_page.about_tools()}",
        "ratios": lambda: f"{readme.when_it_pays(bench).markdown()}\n\n{where}.",
        "paper": lambda: report.recorded(folder, "full"),
        "densities": densities.section,
        "networks": networks.section,
        "graph": lambda: graph(folder / "graph.svg"),
        "machine": lambda: f"Measured on {where}.",
        "break_even": lambda: "\n\n".join(
            figure(path, f"{threads_text(threads)}. {captions['break_even']}")
            for threads, path in enumerate(pictures()[1:], 1)
        ),
        "saved": lambda: figure(pictures()[0], captions["saved"]),
        "dense_wins": lambda: readme.faster_baselines(bench["rows"]).markdown(),
        "published_networks": published_networks.section,
        "unpruned": unpruned.section,
        "dilation": dilation.section,
        "edge": lambda: edge_report.section(read_lines(edge.RESULTS), folder / "edge.svg"),
        "random_kernels": lambda: random_kernels(folder),
        "random_kernels_xeon": kernels_elsewhere,
        "pocket": lambda: report.recorded(folder, "pocket"),
        "filters": lambda: report.recorded(folder, "filters"),
        "blocks": lambda: report.recorded(folder, "blocks"),
        "blocks_networks": blocks.section,
        "silence": lambda: report.recorded_table("silence", "silenced"),
        "api_summary": names.summary,
        **{f"api_{page}": partial(names.table, page) for page in names.PAGES},
    }


def filled(page: str, made: Mapping[str, Callable[[], str]]) -> str:
    """Return a page's text with its parts made anew."""
    return PART.sub(lambda found: f"{found[1]}\n{made[found[2]]().strip()}\n\n{found[3]}", page)


def figure(path: Path, caption: str) -> str:
    """Return a drawn file with its caption, in Markdown."""
    return f"![{caption}]({path.parent.name}/{path.name})\n\n*{caption}*"


def random_kernels(folder: Path) -> str:
    """Return the times of the features, and of classifiers that use them."""
    bench = readme.recorded()
    rows = bench["random_kernels"]
    parts = [
        "Microseconds to compute the features of one series, with 10 000 kernels. "
        "aeon's transforms were compiled and timed interleaved in the same process, with the "
        "same kernels and threads. Of peak: multiply-adds inside the series, relative to what "
        f"the CPU can do from registers. {readme.where(bench['machine'])}."
    ]
    for count in sorted({row["threads"] for row in rows}):
        mine = [row for row in rows if row["threads"] == count and (count == 1 or row["kept"] == 1)]
        table = tables.table(mine, tables.KERNEL_COLUMNS)
        parts += [f"{threads_text(count)}:", table.markdown()]
    caption = (
        "Random kernels: aeon's classifiers (orange), ours (blue), and DSN (green; hollow because "
        "it was timed on another machine)"
    )
    picture = figure(classifiers.draw(folder / "classifiers.svg"), caption)
    return "\n\n".join([*parts, picture, classifiers.section()])


def speed_by_density(path: Path) -> str:
    figures.save(plots.networks_by_density(densities.speeds()), path)
    return f"![Speed of training by density, with the break-even](docs/static/{path.name})"


def graph(path: Path) -> str:
    graph_picture.draw(path)
    return figure(
        path,
        "An Inception module with its shortcut. Blue: in the kernels' order; orange: conversions.",
    )


def kernels_elsewhere() -> str:
    """Return the times of the features on another machine, with all kernels."""
    bench = recording.read(KERNELS_XEON)
    whole = (row for row in bench["random_kernels"] if row["kept"] == 1)
    table = tables.table(whole, tables.KERNEL_COLUMNS)
    return f"{readme.where(bench['machine'])}.\n\n{table.markdown()}"


def shorten(path: Path) -> None:
    """Round what matplotlib drew to hundredths of a point, and drop its metadata."""
    text, drawn = re.subn(r" *<metadata>.*?</metadata>\n", "", path.read_text("utf-8"), flags=re.S)
    if drawn:
        path.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", text), encoding="utf-8")


def main() -> None:
    """Write every page and picture; equal results yield equal files."""
    from matplotlib import rc_context

    made = parts()
    with rc_context(SVG):
        for page in PAGES:
            text = page.read_text(encoding="utf-8")
            page.write_text(filled(text, made), encoding="utf-8")
    for picture in PICTURES.glob("*.svg"):
        shorten(picture)


if __name__ == "__main__":
    main()
