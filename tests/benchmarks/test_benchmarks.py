"""What belongs to the repository: the training step, the demo, accuracy runs, the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_document import document

from benchmarks import demo, readme, readme_tables
from benchmarks.paper import accuracy
from sparseconv.models import DSN


def test_without_the_extension_the_demo_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from sparseconv.ops import backends

    monkeypatch.setattr(backends, "extension", None)
    monkeypatch.setattr(backends, "_missing_reason", "the C++ extension is not built (why)")
    out = tmp_path / "demo"
    assert demo.main(["--out", str(out)]) == 1
    shown = capsys.readouterr()
    assert "not built (why)" in shown.err
    assert shown.out == ""
    assert not out.exists()


def test_demo_layers_count_what_they_execute() -> None:
    layers = DSN(1, 2, nf=5, kernel_size=9, depth=2).sparse_layers()
    first, second = (
        demo.time_layer(layer, 3, 20, first=i == 0, rounds=1) for i, layer in enumerate(layers)
    )
    assert first["forward"]["flops"] == first["backward"]["flops"] == 2 * 60 * layers[0].pattern.nnz
    assert second["backward"]["flops"] == 2 * second["forward"]["flops"]
    assert second["forward"]["dense_flops"] == 2 * 60 * layers[1].pattern.numel


def test_accuracy_runs_once_and_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done: list[tuple[Any, ...]] = []

    def fake(*key: Any, progress: bool) -> dict[str, Any]:
        done.append(key)
        result = dict(zip(accuracy.KEY, key, strict=True))
        return result | {"accuracy": 0.9 + 0.01 * key[2], "train_seconds": 1.0}

    monkeypatch.setattr(accuracy, "run", fake)
    out = tmp_path / "new" / "accuracy.jsonl"
    common = ["--epochs", "7", "--out", str(out), "--datasets", "GunPoint", "ACSF1"]
    assert accuracy.main([*common, "--seeds", "0"]) == 0
    assert accuracy.main([*common, "--seeds", "0", "1", "--masked-dense", "GunPoint"]) == 0
    assert len(done) == len(set(done)) == 2 + 4
    assert len(accuracy.finished(out)) == 6
    text = capsys.readouterr().out
    assert "90.50 ± 0.71 (2)" in text
    assert "99.07" in text
    assert "91.60" in text


def test_published_figures_exist_for_every_set() -> None:
    runs = [
        {"dataset": name, "epochs": 1, "kind": "sparse", "accuracy": 1}
        for name in accuracy.SETTINGS
    ]
    assert len(accuracy.table(runs).rows) == 7


@pytest.mark.parametrize("kind", ["sparse", "masked dense"])
def test_accuracy_trains_both_kinds(kind: str) -> None:
    pytest.importorskip("aeon")
    result = accuracy.run("ItalyPowerDemand", kind, 0, 10, progress=False)
    assert 0.8 < result["accuracy"] <= 1  # half of the cases are of one class
    assert result["active_weights"] == 732 + 3 * 34459
    assert (result["itop_rate"] is None) == (kind == "masked dense")
    json.dumps(result)


@pytest.fixture
def bench() -> dict[str, Any]:
    found = document()
    epoch = found["network"][-1]
    epoch["data"] = "ACSF1"
    return found


def lines(table: Any) -> list[str]:
    return ["|".join(row) for row in table.rows]


def test_readme_kernels_are_sorted_and_complete(bench: dict[str, Any]) -> None:
    table = readme_tables.kernels(list(reversed(bench["rows"])))
    assert [row[:3] for row in table.rows] == [
        (computation, str(length), str(threads))
        for computation in ("fprop", "dgrad", "wgrad")
        for length in (24, 128, 512, 1024, 2709)
        for threads in (1, 2)
    ]
    row = next(r for r in bench["rows"] if (r["case"], r["computation"], r["threads"])
               == ("dsn_evolved_L24", "fprop", 1))  # fmt: skip
    m, low, high = row["ratio"]["conv2d_channels_last"]
    assert table.rows[0][4:6] == (f"{row['gflops']:.0f}", f"{row['share_of_peak']:.0%}")
    assert table.rows[0][7] == f"{m:.2f} [{low:.2f}, {high:.2f}]"


def test_readme_names_the_worst_row_of_each_suite(bench: dict[str, Any]) -> None:
    bad = next(r for r in bench["rows"] if (r["suite"], r["threads"]) == ("kernel", 2))
    bad["ratio"]["conv1d"] = [0.5, 0.4, 0.6]
    found = readme_tables.worst(bench["rows"])
    assert len(found.rows) == len({row["suite"] for row in bench["rows"]})
    assert f"kernel|k1|{bad['computation']}|2|13.3%|0.50 [0.40, 0.60]" in lines(found)
    del bad["ratio"]["conv1d"]
    assert "k1|fprop|2|13.3%|-" not in "".join(lines(readme_tables.worst(bench["rows"])))


def test_readme_network_keeps_the_rivals_apart(bench: dict[str, Any]) -> None:
    found = lines(readme_tables.whole_network(bench["network"]))
    assert len(found) == len(bench["network"])
    assert found[0] == (
        "training step|24|1|2.17|5.20 [5.00, 5.40]|3.90|channels_last|4.80|30.2|90.0"
    )
    assert found[-1] == "epoch, ACSF1|1460|1|2300|-|-|-|-|-|-"


def test_readme_parts_add_up(bench: dict[str, Any]) -> None:
    table = readme_tables.where_time_goes(bench["network"])
    train, inference = (
        next(
            r for r in bench["network"] if (r["mode"], r["length"], r["threads"]) == (mode, 128, 1)
        )
        for mode in ("train", "inference")
    )
    columns = [spent for row in (train, inference) for spent in row["parts"].values()]
    assert table.header[1:] == tuple(
        f"{mode}, {side}" for mode in ("training step", "inference")
        for side in ("masked dense", "sparse")
    )  # fmt: skip
    *parts, total = table.rows
    for i, spent in enumerate(columns, start=1):
        whole = sum(spent.values())
        assert float(total[i]) == pytest.approx(whole, rel=5e-3)
        shown = sum(float(line[i]) for line in parts if line[i] != "-")
        assert shown == pytest.approx(whole, rel=2e-2)
    assert "Python and autograd" in [line[0] for line in parts]


def test_readme_is_not_made_of_a_stopped_run(tmp_path: Path, bench: dict[str, Any]) -> None:
    machine = {"cpp": "available (CPU, avx512)"}
    bench["machine"] |= machine
    for complete in (True, False):
        (tmp_path / "bench.json").write_text(json.dumps(bench | {"complete": complete}))
        if complete:
            text = readme.section(tmp_path)
        else:
            with pytest.raises(ValueError, match=r"stopped; run make bench again"):
                readme.section(tmp_path)
    for title in ("Kernels", "Where it pays least", "The whole network", "Where the time goes",
                  "Goals", "The machine's own peaks"):  # fmt: skip
        assert f"**{title}" in text
    (tmp_path / "bench.json").write_text(json.dumps(bench | {"network": []}))
    assert "**The whole network" not in readme.section(tmp_path)  # and no empty table


def test_readme_shows_the_recorded_results() -> None:
    assert readme.main(["--check"]) == 0, "run python -m benchmarks.readme"
