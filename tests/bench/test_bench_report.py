"""The HTML report of a benchmark run, made of a document that is made up."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import bench_document
import numpy as np
import pytest
from bench_document import document

from sparseconv.bench import cases
from sparseconv.bench.page import cost_plots, plots, report
from sparseconv.bench.page.svg import THEME


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    report.write(document(counts=(1,)), path)
    return path.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Every tag is closed in order; ids and the links to them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "section":
            self.ids.append(str(given["id"]))
        if tag == "a":
            self.links.append(str(given["href"]).removeprefix("#"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_every_part_of_the_document_is_shown(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.ids == outline.links
    assert outline.headings == [
        "Goals", "Roofline", "Time saved against FLOPs saved", "Break-even", "The whole network",
        "How cost grows", "Layers of the Dynamic Sparse Network",
        "Patterns of a trained network", "Series from short to long",
        "From sparse to dense", "Channels", "Kernel sizes", "Batch sizes",
        "Stride, dilation, groups, padding", "Adversarial patterns", "Other dtypes",
        "Other instruction sets", "Machine",
    ]  # fmt: skip
    content = document(counts=(1,))
    for row in content["rows"]:
        assert row["case"] in page
    assert page.count("<tbody>") == 4 + 11  # goals, network, facts, peaks; suites
    assert "✗ missed" in page
    assert "1 of 2" in page  # the third is stated, and not judged
    for text in (
        "dense best / sparse",
        "3.90 [3.80, 4.00]",
        "5.20 [5.00, 5.40]",
        "channels_last",
        "training step (3.9x to 3.9x the best dense)",
    ):
        assert text in page
    assert "Imaginary CPU &lt;x64&gt;" in page


def test_no_suite_is_forgotten() -> None:
    assert set(report.SUITES) == set(cases.SUITES)


def test_numbers_reach_the_tables(page: str) -> None:
    row = document(counts=(1,))["rows"][0]
    m, low, high = row["ratio"]["conv1d"]
    cells = [row["case"], "fprop", "16", "47 → 141 x 39", "24", "13.33%"]
    cells += [f"{row['ms']['sparse']:.4g}", f"{m:.2f} [{low:.2f}, {high:.2f}]"]
    speed = [f"{row['gflops']:.1f}", f"{row['share_of_peak']:.0%}", f"{row['share_of_roof']:.0%}"]
    first, last = (
        r"\s*".join(rf"<td[^>]*>{re.escape(cell)}</td>" for cell in some)
        for some in (cells, [*speed, f"{row['drift']:.2f}"])
    )
    assert re.search(rf"{first}((?!</tr>).)*{last}", page, flags=re.DOTALL)


def test_the_page_needs_nothing_else(page: str) -> None:
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "url(http" not in page
    assert "@import" not in page
    assert "<script" not in page
    assert 'name="viewport"' in page


def test_plots_follow_the_page_into_the_dark(page: str) -> None:
    plots_only = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    for colour, name in THEME.items():
        assert not re.search(rf": {colour}\b", plots_only, flags=re.IGNORECASE), colour
        assert f"var(--{name})" in plots_only
        assert page.count(f"--{name}:") == 2, name  # a light and a dark one
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        root = ET.fromstring(svg)
        assert root.get("aria-label")
        assert root.get("viewBox")


EMPTY = {"schema": 1, "machine": {}, "peaks": [], "rows": [], "growth": [], "network": []}


def test_nothing_is_shown_of_nothing(tmp_path: Path) -> None:
    for empty in (EMPTY, {"schema": 1}):
        report.write(empty, tmp_path / "report.html")
        html = (tmp_path / "report.html").read_text()
        assert "<section" not in html
        assert "<svg" not in html


@pytest.mark.parametrize("key", ["machine", "peaks", "growth", "network", "goals"])
def test_each_list_stands_alone(tmp_path: Path, key: str) -> None:
    content = document(counts=(1,))[key]
    if key == "growth":
        content = content[:1]
    if key == "network":
        content = [content[0], content[-1]]
    report.write(EMPTY | {key: content}, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("<section") == 1


@pytest.mark.parametrize("schema", [None, 2])
def test_another_schema_is_refused(tmp_path: Path, schema: int | None) -> None:
    with pytest.raises(ValueError, match=rf"schema 1, but its schema is {schema}"):
        report.write({"schema": schema}, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def axes_of(plot: plots.Plot) -> list[Any]:
    return [ax for ax in plot.figure.axes if ax.get_label() != "<colorbar>"]


def test_roofline_shows_every_point_below_its_roofs() -> None:
    content = document()
    found = plots.roofline(content["rows"], content["peaks"])
    kinds = {(row["threads"], row["isa"]) for row in content["rows"] if row["dtype"] == "float32"}
    assert len(found) == len(kinds)  # float64 and avx2 on two threads have no peak or no row
    for plot, peak in zip(found, content["peaks"], strict=False):
        (ax,) = axes_of(plot)
        points = np.concatenate([c.get_offsets() for c in ax.collections])
        mine = [r for r in content["rows"] if r["dtype"] == "float32"
                and (r["threads"], r["isa"]) == (peak["threads"], peak["isa"])]  # fmt: skip
        assert sorted(points[:, 1]) == pytest.approx(sorted(row["gflops"] for row in mine))
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        assert ((points > (left, bottom)) & (points < (right, top))).all()
        memory = ax.get_lines()[0].get_xydata()
        assert memory[1] == pytest.approx(
            (peak["fma_gflops"] / peak["stream_gbs"], peak["fma_gflops"])
        )


def test_speedup_draws_the_medians_of_each_rival() -> None:
    rows = document(counts=(1,))["rows"]
    (plot,) = plots.speedup(rows, "kernel")
    panels = axes_of(plot)
    assert [ax.get_title("left") for ax in panels] == list(plots.COMPUTATIONS)
    mine = [r for r in rows if r["suite"] == "kernel" and r["computation"] == "fprop"]
    bars = dict(zip(panels[0].get_legend_handles_labels()[1], panels[0].containers, strict=True))
    x, y = bars["conv1d"].lines[0].get_data()
    assert list(x) == [row["kernel_size"] for row in mine]
    assert list(y) == pytest.approx([row["ratio"]["conv1d"][0] for row in mine])
    low, high = np.array(bars["fft"].lines[2][0].get_segments())[0, :, 1]
    assert (low, high) == pytest.approx(tuple(mine[0]["ratio"]["fft"][1:]))


def test_a_sweep_keeps_everything_else_fixed() -> None:
    rows = document(counts=(1,))["rows"]
    for suite, fixed in (("density", "L = 128"), ("channels", "density 13%")):
        (plot,) = plots.speedup(rows, suite)
        assert fixed in plot.caption
    assert plots.speedup(rows, "kernel")[0].caption.startswith("1 thread, N = 16, 47 → 141")
    one = [row for row in rows if row["suite"] == "kernel" and row["kernel_size"] == 39]
    assert plots.speedup(one, "kernel") == []


def test_break_even_needs_a_grid() -> None:
    rows = document(counts=(1,))["rows"]
    lengths, channels = plots.break_even(rows)
    assert "length" in lengths.name
    assert "input channels" in channels.name
    labels = [t.get_text() for t in axes_of(lengths)[0].get_xticklabels()]
    assert labels == ["24", "128", "512", "2048"]  # measured at most densities
    cell = next(r for r in rows if r["case"] == "random_0.9_L512" and r["computation"] == "fprop")
    i = [t.get_text() for t in axes_of(lengths)[0].get_yticklabels()].index("90")
    drawn = axes_of(lengths)[0].collections[0].get_array()
    assert drawn[i, 2] == pytest.approx(np.log2(cell["ratio"]["conv1d"][0]))
    cross = [
        row
        for row in rows
        if row["suite"] == "length" or (row["suite"] == "density" and row["length"] == 128)
    ]
    assert plots.break_even(cross) == []
    diagonal = [row for row in rows if row["case"] in ("random_0.9_L512", "random_0.3_L24")]
    assert plots.break_even(diagonal) == []


def test_break_even_frames_what_dense_wins() -> None:
    rows = [row for row in document(counts=(1,))["rows"] if row["suite"] == "density"]
    (everywhere,) = plots.break_even([row | {"ratio": {"conv1d": [1.5] * 3}} for row in rows])
    assert "faster in every field" in everywhere.caption
    lost = {(0.9, 512), (1.0, 24)}
    (plot,) = plots.break_even(
        [
            row
            | {"ratio": {"conv1d": [0.5 if (row["density"], row["length"]) in lost else 1.5] * 3}}
            for row in rows
        ]
    )
    assert "in red frames dense" in plot.caption
    for ax in axes_of(plot):
        columns, lines = (
            [float(t.get_text()) for t in labels]
            for labels in (ax.get_xticklabels(), ax.get_yticklabels())
        )
        framed = {
            (lines[int(min(y))] / 100, columns[int(min(x))])
            for x, y in (line.get_data() for line in ax.get_lines())
        }
        assert framed == lost
        assert not axes_of(everywhere)[0].get_lines()


def test_the_registry_spans_three_maps() -> None:
    made = bench_document.row("any", "any", "fprop", np.random.default_rng(0))
    rows = [
        made | {
            "case": case.name, "batch": case.n, "in_channels": case.in_channels,
            "out_channels": case.out_channels, "kernel_size": case.kernel_size,
            "length": case.length, "density": case.make_pattern().density,
        }
        for case in cases.select(["density", "length", "channels", "kernel", "break_even", "layer"])
    ]  # fmt: skip
    found = [axes_of(plot)[0] for plot in plots.break_even(rows)]
    spans = [[t.get_text() for t in ax.get_xticklabels()] for ax in found]
    assert spans == [["24", "128", "512"], ["8", "32", "128"], ["3", "9", "39"]]
    for ax in found:
        assert [t.get_text() for t in ax.get_yticklabels()] == ["13", "30", "60", "100"]
        assert np.isfinite(ax.collections[0].get_array()).all()


def test_patterns_of_almost_no_weights_stand_in_no_sweep() -> None:
    rows = document(counts=(1,))["rows"]
    layer = next(r for r in rows if r["suite"] == "density" and r["length"] == 128)
    packing = [layer | {"density": 2e-4, "flops": layer["flops"] / 100}]
    for draw in (plots.saved, lambda some: plots.speedup(some, "density")):
        ((with_it,), (without,)) = draw(rows + packing), draw(rows)
        for one, other in zip(axes_of(with_it), axes_of(without), strict=True):
            assert one.get_xlim() == other.get_xlim()


def test_rivals_that_did_not_run_leave_nothing_empty() -> None:
    rows = document(counts=(1,))["rows"]
    alone = [row | {"ratio": {}} for row in rows]
    assert plots.saved(alone) == plots.break_even(alone) == plots.speedup(alone, "length") == []


def test_saved_has_a_point_per_case() -> None:
    rows = document(counts=(1,))["rows"]
    (plot,) = plots.saved(rows)
    points = np.concatenate([c.get_offsets() for c in axes_of(plot)[0].collections])
    compared = plots.main_rows(rows)
    assert len(points) == len(compared)
    assert {row["isa"] for row in compared} == {"avx512"}
    assert {row["dtype"] for row in compared} == {"float32"}


def test_growth_draws_the_fitted_power() -> None:
    fit = {"quantity": "nnz", "computation": "fprop", "threads": 1, "exponent": 1.0,
           "points": [[10, 1.0, 1e6], [100, 10.0, 1e6]], "exponent_range": [0.9, 1.1],
           "memory_exponent": 0.0}  # fmt: skip
    (plot,) = cost_plots.growth([fit])
    time, memory = axes_of(plot)
    assert time.get_lines()[0].get_ydata() == pytest.approx([1, 10])
    assert memory.get_lines()[0].get_ydata() == pytest.approx([1, 1])
    assert "exponent 1.00 [0.90, 1.10]" in time.get_legend_handles_labels()[1][0]


def test_stacked_bars_add_up() -> None:
    network = document(counts=(1,))["network"]
    found = cost_plots.step_parts(network)
    assert len(found) == 2  # training and inference; the epoch has no parts
    first = axes_of(found[0])[0]
    parts = network[0]["parts"]
    ends = {round(bar.get_y() + bar.get_height() / 2): bar.get_x() + bar.get_width()
            for bar in first.patches}  # fmt: skip
    assert ends == pytest.approx({0: sum(parts["masked_dense"].values()),
                                  1: sum(parts["sparse"].values())})  # fmt: skip


def test_importing_it_imports_neither_matplotlib_nor_jinja2() -> None:
    code = (
        "import sys, sparseconv.bench.page.report\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
