"""Tables and figures of `make paper`, from rows made by hand."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.stats import fisher_exact, wilcoxon

from benchmarks.paper import figures, report
from benchmarks.paper.__main__ import main
from benchmarks.paper.archives import members
from benchmarks.paper.comparison import PEERS, Runs, holm, interval, published_accuracy, versus
from benchmarks.paper.parts import PARTS
from benchmarks.paper.plan import DEFAULTS, PLANS
from benchmarks.paper.tables import dsn
from benchmarks.paper.tables.cells import DIFFERENCE, p_text
from sparseconv.models import DSN
from sparseconv.report.figures import group_profiles, kernels_by_size

SETS = members("ucr85")[:6]


def row(
    run: str, dataset: str, seed: int = 0, accuracy: float = 0.9, **more: Any
) -> dict[str, Any]:
    return {
        "run": run, "dataset": dataset, "seed": seed, "accuracy": accuracy, "options": DEFAULTS,
        "params": 1000, "macs": 5_000_000, "epochs": 10, "train_seconds": 20.0, "n_test": 50,
        "predict_seconds": 0.1, "n_train": 20, "n_channels": 1, "n_timepoints": 10,
        "curve": [[5, accuracy / 2], [10, accuracy]],
        "curve_seconds": [10.0, 20.0],
        "machine": {"cpu": "a processor", "torch": "2.13", "commit": "abc", "date": "today"},
        **more,
    }  # fmt: skip


def dsn_facts(**network: Any) -> dict[str, Any]:
    model = DSN(1, 2, **network)
    profiles = [group_profiles(layer) for layer in model.sparse_layers()]
    return {
        "flops_paper": 2e6,
        "kernels_by_size": [counts.tolist() for counts in kernels_by_size(model)],
        "group_weights": [(100 * p / p.max()).round().astype(int).tolist() for p in profiles],
    }


@pytest.fixture(scope="module")
def full() -> list[dict[str, Any]]:
    """A row for each run that the plans name, on six sets."""
    generator = np.random.default_rng(0)
    names = [
        line.partition('"')[2].rstrip('"\n')
        for line in (PLANS / "full.toml").read_text().splitlines()
        if line.startswith("name = ")
    ]
    rows = [
        row(name, dataset, 0, generator.uniform(0.7, 1), **dsn_facts(nf=4))
        for name in dict.fromkeys(names)
        for dataset in (members("ucr2018")[:6] if name == "UCR 2018" else SETS)
    ]
    for one in rows:
        one["train_seconds"] = 50.0 if one["run"] == "masked dense" else 10.0
        one["curve_seconds"] = [one["train_seconds"] / 2, one["train_seconds"]]
        one |= {"forward_ms": 1.0, "step_ms": generator.uniform(3, 4)}
        if one["run"] != "without groups":
            continue
        one |= dsn_facts(nf=4, n_groups=1)
    return rows


def test_versus_published() -> None:
    theirs = published_accuracy("ResNet")
    ours = {
        name: theirs[name] + step for name, step in zip(SETS, (3, 1, 0, 0.004, -1, -2), strict=True)
    }
    found = versus(ours, theirs)
    assert found is not None
    assert (found.wins, found.ties, found.losses, found.sets) == (2, 2, 2, 6)
    steps = np.array([3, 1, 0, 0.004, -1, -2])
    assert found.difference == pytest.approx(steps.mean())
    assert found.interval is not None
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.p == pytest.approx(wilcoxon([3, 1, 0, 0, -1, -2]).pvalue)
    assert versus(ours, {}) is None
    noisy = {str(i): 80.0 + step / 3 for i, step in enumerate((-1, -1, 1, 0, 1, 1))}
    even = versus(
        {k: (v + v + v) / 3 + 1e-14 for k, v in noisy.items()}, dict.fromkeys(noisy, 80.0)
    )
    assert even is not None
    assert even.p == wilcoxon([-1, -1, 1, 0, 1, 1]).pvalue, "the noise of means is no difference"
    same = versus(ours, ours)
    assert same is not None
    assert (same.ties, same.p) == (6, None)
    one = versus({"a": 90.0}, {"a": 85.0})
    assert one is not None
    assert (one.wins, one.interval, one.p) == (1, None, None), "one set has no spread"


@pytest.mark.parametrize("count", [2, 3, 12, 60])
def test_interval_of_a_mean_holds_it_in_95_percent(count: int) -> None:
    drawn = np.random.default_rng(count).normal(5, 2, size=(2000, count))
    holds = [low <= 5 <= high for low, high in map(interval, drawn)]
    assert np.mean(holds) == pytest.approx(0.95, abs=0.015)  # three deviations of 2000 cases


def test_interval_of_equal_values() -> None:
    assert interval([2.0, 2.0]) == (2, 2)


def test_holm() -> None:
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04, 0.01]) == [0.04, 0.02]


def test_hours_are_of_training_pruning_and_tuning() -> None:
    variant = {"prune_seconds": 600.0, "tune_seconds": 1200.0, "accuracy": 0.5}
    rows = [row("a", SETS[0], train_seconds=1800.0, variants=[variant, variant])]
    assert report.where(rows).startswith("1 training, 1.5 hours of one core")
    rows += [row("a", SETS[1], train_seconds=None)]
    assert report.where(rows).startswith("2 trainings (1 of them without times), 1.5 hours")


def test_table_1() -> None:
    theirs = published_accuracy("OS-CNN")
    rows = [
        row("DSN", name, seed, (theirs[name] + 1 + seed) / 100) for name in SETS for seed in (0, 2)
    ]
    table = dsn.univariate(Runs([*rows, row("DSN", "ACSF1", 0, 0.1)]))
    found = dict(zip(table.header, table.rows[2], strict=True))
    assert found["published"] == "OS-CNN"
    assert found["DSN wins/ties/losses"] == "6/0/0", "the set of 2018 is left out"
    scaled, p = found["the paper's, scaled; p"].split("; ")
    assert scaled == "3.5/0.2/2.3"  # of 49/3/33 in 85
    assert p == p_text(fisher_exact([[6, 0], [49, 36]]).pvalue)
    assert [cells[3].partition(";")[0] for cells in table.rows] == (
        ["3.7/0.2/2.0", "2.8/0.4/2.8", "3.5/0.2/2.3"]  # the paper's 53/3/29, 40/5/40
    )
    assert found["sets"] == "6"
    assert found[DIFFERENCE] == "+2.00 [+2.00, +2.00]; +2.00"


def test_table_1_corrects_its_tests_and_means_common_sets() -> None:
    sets = members("ucr85")[:12]
    ours = {name: published_accuracy("ResNet")[name] + 1 + i / 9 for i, name in enumerate(sets)}
    table = dsn.univariate(Runs([row("DSN", name, 0, value / 100) for name, value in ours.items()]))
    found = {cells[0]: cells for cells in table.rows}
    p = [wilcoxon([ours[n] - published_accuracy(peer)[n] for n in sets]).pvalue for peer in PEERS]
    for peer, corrected in zip(PEERS, holm(p), strict=True):
        theirs = [published_accuracy(peer)[name] for name in sets]
        assert found[peer][4] == f"{np.mean(theirs):.2f}"
        assert found[peer][5] == f"{np.mean(list(ours.values())):.2f}"
        assert found[peer][-1] == p_text(corrected)


def test_networks_of_others_beside_what_was_published() -> None:
    theirs = published_accuracy("LITE")
    rows = [
        row("LITE", name, seed, (theirs[name] + by + seed) / 100)
        for name, by in zip(SETS, (2, 1, 1, -1, -1, 4), strict=True)
        for seed in (0, 1)
    ]
    rows += [row("LITE", "not published"), row("DSN", SETS[0])]
    (found,) = dsn.reproduced(Runs(rows), ("ResNet", "LITE")).rows
    low, high = interval([2.5, 1.5, 1.5, -0.5, -0.5, 4.5])
    mean = np.mean([theirs[name] for name in SETS])
    assert found[:5] == ("LITE", "6, 12", f"{mean + 1.5:.2f}", f"{mean:.2f}", "4/0/2")
    assert found[5] == f"+1.50 [{low:+.2f}, {high:+.2f}]; +1.50"


def test_against() -> None:
    base = [row("base", str(i), 0, 0.9) for i in range(8)]
    worse = [row("worse", str(i), 0, 0.9 - i / 100) for i in range(8)]
    mixed = [row("mixed", str(i), 0, 0.9 + (-1) ** i * i / 100) for i in range(6)]
    table = dsn.against(Runs([*base, *worse, *mixed]), "base", ("worse", "mixed", "not run"))
    low, high = interval([-i for i in range(8)])
    first, second = table.rows
    # Of 7 differences of one sign the two-sided p is 2 / 2 ** 7, twice that among two tests.
    assert first == (
        "worse", "8, 8", "86.50", "90.00", "0/1/7", f"-3.50 [{low:+.2f}, {high:+.2f}]; -3.50",
        "0.031",
    )  # fmt: skip
    assert second[:5] == ("mixed", "6, 6", "89.50", "90.00", "2/1/3")
    assert table.header[3] == "base %"


def test_multivariate() -> None:
    rows = [row("UEA", "Epilepsy", seed, accuracy) for seed, accuracy in enumerate((0.9, 1.0))]
    rows += [row("Daily Sports, S = 90 %", "DailySportsEvery4", 0, 0.5, params=2500)]
    first, second = dsn.multivariate(Runs(rows)).rows
    theirs = [published_accuracy(peer).get("Epilepsy") for peer in PEERS]
    shown = ["-" if value is None else f"{value:.2f}" for value in theirs]
    assert first == ("Epilepsy", "95.00 (2)", *shown, "1.00")
    assert second == ("Daily Sports, S = 90 %", "50.00 (1)", "-", "-", "-", "2.50")


def test_costs_are_beside_the_references() -> None:
    runs = Runs([row("a", "x"), row("a", "y"), row("b", "x", params=3000)])
    table = dsn.costs(runs, ("a", "b", "not run"), "a")
    first, second = (dict(zip(table.header, cells, strict=True)) for cells in table.rows)
    assert (first["run"], first["sets, runs"], first["params K"]) == ("a", "2, 2", "1.00")
    assert list(second.values()) == [  # of the set that both have
        "b", "1, 1", "90.00, 90.00", "3.00, 1.00", "-, -", "5.00, 5.00", "0", "-", "-", "-",
    ]  # fmt: skip
    both = [row("a", "x", **dsn_facts(nf=4)), row("b", "x")]
    assert dsn.costs(Runs(both), ("a", "b"), "a").rows[1][4] == "-, 2.00", "2e6 FLOPs"
    assert dsn.costs(runs, ("not run",), "a").rows == []
    assert dsn.costs(runs, ("a",), "a").rows == [], "nothing to compare"


def test_a_run_of_few_sets_does_not_shrink_the_others() -> None:
    rows = [row(run, name) for run in "ab" for name in "xyz"] + [row("c", "x")]
    table = dsn.costs(Runs(rows), ("a", "b", "c"), "a")
    assert [cells[1] for cells in table.rows] == ["3, 3", "3, 3", "1, 1"]


def test_costs_count_each_set_alike() -> None:
    """However many seeds it has: else a run with more seeds of the easy sets looks better."""
    rows = [
        *(row(run, "easy", seed, 0.9) for run in "ab" for seed in (0, 1, 2)),
        *(row(run, "hard", 0, 0.5) for run in "ab"),
        row("b", "hard", 1, 0.1),  # which the other run has not
    ]
    table = dsn.costs(Runs(rows), ("a", "b"), "a")
    assert [cells[1:3] for cells in table.rows] == [("2, 4", "70.00"), ("2, 4", "70.00, 70.00")]


def test_pictures_count_each_set_alike() -> None:
    """Of seeds first the mean, and of one set that another run has not, nothing."""
    rows = [
        row("DSN", "x", 0, kernels_by_size=[[0, 4]]), row("DSN", "x", 1, kernels_by_size=[[2, 2]]),
        row("DSN", "y", 0, kernels_by_size=[[1, 0]]),
    ]  # fmt: skip
    (layer,) = figures._mean_layers(Runs(rows), "DSN", figures._shares)
    assert layer.tolist() == [(0.25 + 1) / 2, (0.75 + 0) / 2]


def test_equal_seeds_are_compared() -> None:
    """A mean over several seeds is no match for a single one, which may be the lucky one."""
    rows = [row("a", "x", seed, accuracy) for seed, accuracy in enumerate((0.9, 0.5, 0.4))]
    rows += [row("b", "x", 0, 0.8), row("b", "y", 0, 0.1)]
    runs = Runs(rows)
    assert figures.less(runs, "b", "a") == {"x": pytest.approx(-10)}
    (cells,) = dsn.against(runs, "a", ("b",)).rows
    assert cells[:5] == ("b", "1, 1", "80.00", "90.00", "0/0/1")


def on(cpu: str) -> dict[str, Any]:
    return {"machine": {"cpu": cpu, "torch": "2.13", "commit": "abc", "date": "today"}}


def test_times_compare_on_one_cpu() -> None:
    rows = [
        row("a", "x", 0, **on("slow"), train_seconds=40.0),
        row("a", "x", 1, **on("fast"), train_seconds=20.0),
        row("a", "y", 0, **on("slow"), train_seconds=1e9),
        row("a", "z", 0, **on("fast"), train_seconds=30.0),
        *(row("b", name, 0, **on("fast"), train_seconds=10.0) for name in "xyz"),
    ]

    def seconds(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        runs = Runs(rows).on_one_cpu("a", "b")
        return [runs.mean(run, "train_seconds") for run in ("a", "b")]

    assert seconds(rows) == [{"z": 30.0}, {"z": 10.0}], "of x no seed was trained by both"
    rows += [row("b", "x", 1, **on("fast"), train_seconds=30.0)]
    assert seconds(rows) == [{"x": 20.0, "z": 30.0}, {"x": 30.0, "z": 10.0}], "whatever seed 0 took"
    never = [row("a", "x", 0, **on("slow")), row("b", "x", 0, **on("fast"))]
    assert seconds(never) == [{}, {}]


def test_times_in_tables_are_of_sets_that_both_were_timed_on() -> None:
    def timed(run: str, dataset: str, step: float) -> dict[str, Any]:
        return {**row(run, dataset, 0), "forward_ms": step / 4, "step_ms": step}

    rows = [timed("a", "x", 8.0), timed("a", "y", 2.0), timed("a", "z", 1e9), row("a", "z", 1)]
    rows += [timed("b", "x", 4.0), timed("b", "y", 4.0), row("b", "z", 0), row("b", "z", 1)]
    first, second = dsn.costs(Runs(rows), ("a", "b"), "a").rows
    assert (first[-4], first[-1]) == ("3", "-")
    assert second[-4:] == ("2", "1.00, 1.00", "4.00, 4.00", "1.00 [0.50, 2.00]")
    rows = [row("a", "x", 0), timed("b", "x", 1.0)]
    assert dsn.costs(Runs(rows), ("a", "b"), "a").rows[1][-4:] == ("0", "-", "-", "-")


def test_time_to_accuracy_is_of_one_cpu(tmp_path: Path) -> None:
    apart = Runs([row("a", "x", 0, **on("slow")), row("b", "x", 0, **on("fast"))])
    assert figures.time_to_accuracy(apart, tmp_path / "x.png", "a", "b") is None
    assert figures.accuracy_by_time(apart, tmp_path / "x.png", ("a", "b")) is None
    both = Runs([row("a", "x", 0, **on("slow")), row("b", "x", 0, **on("slow"))])
    assert figures.time_to_accuracy(both, tmp_path / "x.png", "a", "b")


def test_every_set() -> None:
    table = dsn.each_set(Runs([row("DSN", "GunPoint", s, 0.9 + s / 100) for s in (0, 2)]), ["DSN"])
    (cells,) = table.rows
    assert cells == (
        "GunPoint", "DSN", "91.00 ± 1.41 (2)", "99.07", "100.00", "99.93", "-9.00", "20"
    )  # fmt: skip
    without = [row("DSN", "GunPoint", 0), row("DSN", "Coffee", 0, train_seconds=None)]
    (coffee, _) = dsn.each_set(Runs(without), ["DSN", "not run"]).rows
    assert (coffee[0], coffee[-1]) == ("Coffee", "-"), "no time was measured"


def test_where_dsn_is_behind() -> None:
    best = max(published_accuracy(peer)["ECG200"] for peer in PEERS)
    rows = [row("DSN", "ECG200", seed, (best - 6 + seed) / 100) for seed in (0, 2)]
    rows += [row("DSN", name, 0, 0.999) for name in ("GunPoint", "a set nobody published")]
    table = dsn.behind(
        Runs([*rows, row("wider", "ECG200"), row("other", "x")]), ("DSN", "short"), ("wider", "x")
    )
    assert table.header == ("data set", "to the best", "DSN % ± sd (seeds)", "wider")
    assert table.rows == [("ECG200", "-5.00", f"{best - 5:.2f} ± 1.41 (2)", "90.00 (1)")]
    short = Runs([*rows, row("short", "Coffee", 0, 0.5)])
    assert dsn.behind(short, ("DSN", "short"), ()).rows[0][:2] == ("Coffee (short)", "-50.00")


def test_report_with_everything(full: list[dict[str, Any]], tmp_path: Path) -> None:
    page = report.write_report(full, tmp_path)
    text = page.read_text(encoding="utf-8")
    for part in PARTS:
        if part.name != "table-2":  # these sets are not multivariate, but the runs are
            assert part.title in text, part.name
        assert part.figure is None or (tmp_path / f"{part.name}.png").stat().st_size > 5000
    assert "Left out" not in text
    assert "{" not in "".join(part.caption + part.of_figure for part in PARTS), "not filled in"
    assert "Of UCR 85, 6 were run: " in text
    with (tmp_path / "table-1.csv").open(newline="") as file:
        assert next(csv.reader(file))[0] == "published"
    assert (tmp_path / "table-1.md").read_text().startswith("| published")
    with (tmp_path / "table-4.csv").open(newline="") as file:
        header, cells = csv.reader(file)
    assert (header[3], cells[0]) == ("DSN %", "without groups")


def test_figure_5_states_its_threshold(
    full: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}

    def plot(scores: Any, names: Any, **settings: Any) -> Any:
        drawn.update(settings, shape=scores.shape)
        return plt.figure(), None

    monkeypatch.setattr("aeon.visualisation.plot_critical_difference", plot)
    figures.architectures(Runs(full), tmp_path / "x.png", ("DSN", "depth 2", "nf = 24"))
    assert drawn == {"correction": "holm", "alpha": 0.05, "shape": (6, 3)}


def test_report_of_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = report.write_report([row("DSN", "GunPoint")], tmp_path)
    text = page.read_text(encoding="utf-8")
    left = text.partition("Left out, because what they need was not run: ")[2]
    assert "Figure 5: depth and width" in left
    assert "Every data set" not in left
    assert "critical difference" not in text, "a caption of a figure that is not there"
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert (
        f"no rows to report in {tmp_path / 'nothing'}; run a plan first" in capsys.readouterr().err
    )


def pruned_row(run: str, dataset: str) -> dict[str, Any]:
    variant = {"name": "WHC", "criterion": "whc", "ratio": 0.5}
    found = {"name": "WHC", "accuracy": 0.8, "params": 500, "macs": 7, "at_once": 0.5,
             "tune_seconds": 1.0}  # fmt: skip
    options = {**DEFAULTS, "model": "LITE", "pruning": [variant]}
    return row(run, dataset, options=options, variants=[found])


def drawn_row(dataset: str) -> dict[str, Any]:
    laps = dict.fromkeys(("draw_seconds", "prepare_seconds", "transform_seconds"), 1.0)
    found = row("ROCKET", dataset, options={**DEFAULTS, "model": "ROCKET"}, n_candidates=9,
                variants=[], **laps)  # fmt: skip
    return {key: value for key, value in found.items() if key not in ("params", "macs", "epochs")}


def test_rows_of_all_kinds(tmp_path: Path) -> None:
    """Each part shows its kind of rows; a single one of another kind hides nothing."""
    kinds = {
        "table-1": [row("DSN", name) for name in SETS],
        "smaller-networks": [pruned_row("LITE", SETS[0])],
        "pruned-kernels": [drawn_row(SETS[0])],
    }
    for shown in (["table-1"], ["smaller-networks"], ["pruned-kernels"], [*kinds]):
        folder = tmp_path / "-".join(shown)
        report.write_report([one for kind in shown for one in kinds[kind]], folder)
        assert {kind for kind in kinds if (folder / f"{kind}.md").exists()} == set(shown)
        assert (folder / "runs.md").exists()
    assert "LITE, WHC" in (tmp_path / "-".join(kinds) / "runs.md").read_text()


def test_runs_of_any_name_are_shown(tmp_path: Path) -> None:
    """No table knows the name; what was an earlier report's goes."""
    report.write_report([row("DSN", name) for name in SETS], tmp_path)
    assert (tmp_path / "table-1.md").exists()
    text = report.write_report([row("mine", "x"), row("mine", "y")], tmp_path).read_text()
    assert "mine" in text
    assert (tmp_path / "runs.md").read_text().splitlines()[2].split() == (
        ["|", "mine", "|", "2,", "2", "|", "90.00", "|", "1.00", "|", "40", "|"]
    )
    assert not list(tmp_path.glob("table-1*"))


def test_every_run_of_the_plan_is_shown_somewhere(full: list[dict[str, Any]]) -> None:
    shown = {"UEA"}
    for make in (make for part in PARTS for make in (part.table, part.figure)):
        for value in make.keywords.values() if isinstance(make, partial) else ():
            shown |= {value} if isinstance(value, str) else set(value)
    runs = {one["run"] for one in full}
    assert {run for run in runs - shown if not run.startswith("Daily Sports")} == set()


def test_a_figure_without_its_table_is_named(tmp_path: Path) -> None:
    """Two architectures: enough for the table, too few for a diagram of ranks."""
    rows = [row(name, dataset) for name in ("DSN", "depth 2") for dataset in SETS]
    text = report.write_report(rows, tmp_path).read_text(encoding="utf-8")
    assert "Figure 5: depth and width (the figure)" in text
    assert not (tmp_path / "figure-5.png").exists()


def test_time_to_accuracy() -> None:
    """Of equal seeds; what was seen at the first look may have been reached before."""
    runs = Runs([
        row("fast", "x", 0, 0.9, curve=[[1, 0.5], [2, 0.9]], curve_seconds=[1.0, 2.0]),
        row("fast", "x", 1, 0.8, curve=[[1, 0.9], [2, 0.9]], curve_seconds=[1.0, 2.0]),
        row("fast", "x", 2, 0.8, curve=[[1, 0.9], [2, 0.9]], curve_seconds=[0.1, 2.0]),
        row("slow", "x", 0, 0.7, curve=[[1, 0.2], [2, 0.69]], curve_seconds=[5.0, 9.0]),
        row("slow", "x", 1, 0.9, curve=[[1, 0.2], [2, 0.3]], curve_seconds=[5.0, 9.0],
            train_seconds=11.0),
        row("fast", "x", 3, 0.9, **on("another")),
        row("slow", "x", 3, 0.9),
        row("fast", "x", 4, 0.9, curve=[[1, 0.9]], curve_seconds=[100.0]),
        row("slow", "x", 4, 0.9, curve=[[5, 0.9]], curve_seconds=[100.0]),  # looked later
        row("slow", "y", 0, 0.9),
        row("fast", "y", 0, 0.9, curve=[], curve_seconds=[]),
    ])  # fmt: skip
    fast, slow = figures.times_to_accuracy(runs, "fast", "slow")["x"]
    assert fast == figures.Reached(1.5, True), "seed 0 at the second look, seed 1 at the first"
    assert slow == figures.Reached(10.0, True), "seed 1 is seen to reach it by the test at the end"
    assert list(figures.times_to_accuracy(runs, "fast", "slow")) == ["x"]


def test_the_ratio_of_times_is_said_where_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = {"known": (1.0, 2.0), "first": (0.1, 0.4)}
    rows = [
        row(run, name, 0, 0.9, curve=[[1, 0.9 if run == "fast" and name == "first" else 0.1],
            [2, 0.9], [3, 0.9]], curve_seconds=[scale * at[0], scale * at[1], scale * 9.0],
            train_seconds=99.0)
        for name, at in looks.items() for run, scale in (("fast", 1.0), ("slow", 3.0))
    ]  # fmt: skip
    rows += [row("fast", "end", 0, 0.9), row("slow", "end", 0, 0.9, curve=[[1, 0.1]],
             curve_seconds=[1.0], train_seconds=99.0)]  # fmt: skip
    said = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: said.extend(
        text.get_text() for text in figure.axes[0].texts
    ) or path)  # fmt: skip
    figures.time_to_accuracy(Runs(rows), tmp_path / "x.png", "fast", "slow")
    assert sorted(said) == ["3.0x", "≥ 12.0x"], "1.2 s by 0.1 s, or less; none where slow may be"


def test_picked_sets_do_not_count() -> None:
    """Sets that were tried because the reference came out low there favour any other run."""
    sets = {"a": 10, "b": 20, "c": 30, "d": 40}
    rows = [row("DSN", name, 0, 0.9, n_timepoints=n) for name, n in sets.items()]
    rows += [row("whole", name, 0, n_timepoints=n) for name, n in sets.items()]
    rows += [row("DSN", "d", 1, n_timepoints=40), row("picked", "b", 0, n_timepoints=20)]
    rows += [row("begun", name, 0, n_timepoints=sets[name]) for name in "abd"]
    rows += [row("UEA", name, seed) for name in "xy" for seed in (0, 1)]
    runs = Runs(rows).without_picked()
    found = {name: sorted(runs.rows(name)) for name in runs.names()}
    whole = ["a", "b", "c", "d"]
    assert found == {"DSN": whole, "whole": whole, "begun": ["a", "b"], "UEA": ["x", "y"]}
    assert len(runs.rows("DSN")["d"]) == 1, "nor does a second seed there"
    assert Runs(rows[4:8]).without_picked().rows("whole").keys() == sets.keys(), "no reference"


def test_picked_sets_are_where_dsn_is_behind(tmp_path: Path) -> None:
    rows = [row("DSN", name, 0, 0.5, n_timepoints=n) for n, name in enumerate(SETS, 1)]
    report.write_report([*rows, row("gradient growth", SETS[3])], tmp_path)
    assert "gradient growth" in (tmp_path / "behind.md").read_text()
    assert "gradient growth" in (tmp_path / "runs.md").read_text()
    assert not (tmp_path / "figure-7.md").exists()


def test_figure_7_shows_the_sets_that_all_have() -> None:
    rows = [row("a", name, 0, 0.9) for name in SETS]
    rows += [row("b", name, 0, 0.8) for name in SETS[1:]]
    theirs = dict.fromkeys(SETS[:3], 85.0)
    found = figures.beside_published(Runs(rows), ("a", "b", "not run"), theirs)
    assert found == {
        run: dict.fromkeys(SETS[1:3], (85.0, pytest.approx(ours)))
        for run, ours in (("a", 90), ("b", 80))
    }


def test_differences_and_times_of_questions() -> None:
    rows = [row("base", name, 0, 0.9, step_ms=4.0) for name in "xyz"]
    rows += [row("other", name, 0, 0.8, step_ms=3.0) for name in "xy"]
    runs = Runs(rows)
    assert figures.less(runs, "other", "base") == dict.fromkeys("xy", pytest.approx(-10))
    found = figures.times_and_accuracies(runs, ("base", "other"))
    assert found == {
        "base": ([1.0, 1.0], [0, 0]), "other": ([0.75, 0.75], [pytest.approx(-10)] * 2)
    }  # fmt: skip


def test_the_documentation_shows_what_is_recorded(tmp_path: Path) -> None:
    text = report.recorded(tmp_path, "full")
    for picture in tmp_path.glob("*.png"):
        assert f"({tmp_path.name}/{picture.name})" in text
    assert list(tmp_path.glob("*figure-8.png"))
    assert "## Table 1: univariate sets" in text
    assert "data sets; epochs:" in text


def test_one_table_of_what_is_recorded() -> None:
    text = report.recorded_table("filters", "silenced")
    assert "InceptionTime, silenced" in text
    assert "steps" in text
    assert "wins/ties/losses" not in text  # the other part of this plan
    assert "##" not in text  # the page has headings of its own
