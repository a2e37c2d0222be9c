"""``python -m sparseconv`` refuses what it cannot do, with exit code 2, and changes nothing."""

from __future__ import annotations

import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_run import SMALL, files, write_data

from benchmarks.bench import command as bench
from sparseconv.cli.main import main
from sparseconv.core.files import claimed
from sparseconv.ops import backends

TRAIN = "train {toy} --quiet --nf 3 --depth 2"
POCKET = "train {toy} --quiet --model pocket --n-kernels 40"
PRUNE = "prune {run} --data {toy} --quiet"
# The command line and what it says. {toy} is the data of the run in {run}, {other} has other
# training series; {mine} is a folder of other files, {pocket} a run of --model pocket, and {pruned}
# a pruned one.
ROWS = [
    ("", "required: COMMAND"),
    ("info none", "is not a results folder"),
    ("train none.npz", "no data set 'none.npz' and no such file"),
    (f"{TRAIN} --epoch 2", "unrecognized arguments: --epoch"),
    (f"{TRAIN} --epochs 0", "epochs"),
    (f"{TRAIN} --grow fast", "--grow"),
    (f"{TRAIN} --threads 0", "--threads"),
    (f"{TRAIN} --threads 1000000", "threads (n_jobs)"),
    (f"{TRAIN} --device cuda", "--device cuda needs a GPU, but torch sees none"),
    (f"{TRAIN} --keep 3", "--keep does not apply to --model dsn"),
    (f"{TRAIN} --resume", "is not a results folder"),
    (f"{TRAIN} --out {{toy}}", "toy.npz cannot be written"),
    (f"{TRAIN} --out {{mine}}", "already contains other files; choose another folder with --out"),
    (f"{TRAIN} --out {{run}}", "or continue the run with --resume"),
    ("train {toy} --out {run} --resume --epochs 3", "has epochs=2, but --epochs is 3"),
    ("train {other} --out {run} --resume", "is not the data set that"),
    ("train {toy} --out {pocket} --resume", "contains a pocket model"),
    ("train {toy} --out {pruned} --resume", "contains a pruned run"),
    ("train --out new", "--resume --out RUN"),
    (f"{POCKET} --device cuda", "--device"),
    (f"{POCKET} --keep 10%", "--keep"),
    (f"{POCKET} --seed -1 --out new", "Seed must be between"),
    (f"{POCKET} --nf 4", "--nf does not apply to --model pocket"),
    (f"{POCKET} --resume", "--resume"),
    (f"{POCKET} --out new --keep 41", "keep must lie in [0, 1]"),
    (f"{POCKET} --out {{pocket}}", "already contains a run"),
    ("prune {run} --data {other}", "is not the data set that"),
    (f"{PRUNE} --criterion dsp --silence -1 --out new", "--silence"),
    (f"{PRUNE} --fraction 0.5 --target-macs 9", "--target-macs"),
    (f"{PRUNE} --eps 0.3", "--eps does not apply to --criterion whc"),
    (f"{PRUNE} --criterion dsp --fraction 0.3", "--fraction does not apply to --criterion dsp"),
    (f"{PRUNE} --criterion evolutionary --fraction 0.3", "--fraction does not apply"),
    (f"{PRUNE} --out {{run}}", "already contains a run"),
    ("profile {pocket}", "contains random kernels"),
    ("profile {run} --json .", "cannot be written"),
    ("export {run} --data {toy} --out {run}", "contains files"),
    ("bench --cases dsn", "--cases"),
    ("bench --rounds 5", "--rounds"),
    ("bench --csv /dev/null/rows", "/dev/null/rows cannot be written"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("aeon", reason="aeon is not installed")
    folder = tmp_path_factory.mktemp("home")
    toy = write_data(folder)
    with np.load(toy) as arrays:
        np.savez(folder / "other.npz", **{**arrays, "X_train": arrays["X_train"] + 1})
    run, pocket, pruned = (str(folder / name) for name in ("run", "pocket", "pruned"))
    assert main(["train", toy, "--out", run, *SMALL, "--epochs", "2"]) == 0
    assert main([*shlex.split(POCKET.format(toy=toy)), "--out", pocket]) == 0
    words = ["--data", toy, "--out", pruned, "--epochs", "1", "--quiet"]
    assert main(["prune", run, *words]) == 0
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("mine")
    return folder


@pytest.mark.parametrize(("line", "said"), ROWS, ids=[row[0] for row in ROWS])
def test_refusals(
    line: str, said: str, home: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench, "measure", lambda *a, **k: pytest.fail("measured"))
    places = {path.stem: path.name for path in home.iterdir()}
    before = files(home)
    refused(shlex.split(line.format(**places)), said)
    assert files(home) == before
    assert {path.stem for path in home.iterdir()} == set(places)


def test_what_is_missing(
    home: Path, data: str, out: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", data, "--out", str(out), *SMALL]
    with monkeypatch.context() as patched:
        patched.setenv("SPARSECONV_CPU_ISA", "mmx")
        refused([*words, "--backend", "cpp"], "SPARSECONV_CPU_ISA", "mmx", "baseline")
    monkeypatch.setattr(backends, "extension", None)
    monkeypatch.setattr(backends, "_missing_reason", "the C++ extension is not built (why)")
    refused([*words, "--backend", "cpp"], "error: backend 'cpp' cannot run")
    refused(["bench"], "not built (why)")
    monkeypatch.setattr("sparseconv.cli.main.ROOT", out)  # as installed, without the repository
    refused(["bench"], f"but {out} has none")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for line in (words, ["prune", str(home / "run"), "--out", str(out)]):
        refused(line, "figures need matplotlib", "pip")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "aeon.datasets", None)
    refused(["train", "GunPoint", "--out", str(out)], "aeon is needed", "pip")
    assert not out.exists()


def test_a_run_without_a_checkpoint_does_not_block_its_folder(
    data: str, out: Path, refused: Any
) -> None:
    words = ["train", data, "--epochs", "2", *SMALL, "--out", str(out)]
    refused([*words, "--lr", "1e38"], "the training loss became", "lower lr")
    assert files(out).keys() == {"config.json"}
    for left in ("checkpoint.pt.partial", "checkpoint.pt.0123abcd.partial", "training.lock"):
        (out / left).write_bytes(b"killed while it wrote its first checkpoint")
    assert main(words) == 0
    assert "training.lock" not in files(out)
    assert not list(out.glob("*.partial"))
    assert '"lr": 0.0003' in (out / "config.json").read_text()


@pytest.mark.parametrize("line", [TRAIN, POCKET, f"{PRUNE} --epochs 1"])
def test_one_run_at_a_time(line: str, home: Path, out: Path, refused: Any) -> None:
    words = shlex.split(line.format(toy=home / "toy.npz", run=home / "run"))
    with claimed(out), ThreadPoolExecutor(1) as other:
        said = f"another run is writing to {out}; wait for it, or choose another folder"
        other.submit(refused, [*words, "--out", str(out)], said).result()
    assert not list(out.iterdir())
