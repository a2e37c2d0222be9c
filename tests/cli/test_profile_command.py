"""``python -m sparseconv profile``: which network it takes, what it prints, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_clock import fake_clock
from toy_run import SMALL, files, write_data

from sparseconv import profiling
from sparseconv.cli.main import main
from sparseconv.models import DSN
from sparseconv.training import checkpoint

QUICK_NETWORK = ["--nf", "3", "--kernel-size", "6", "--depth", "2"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``profile`` was called with; only its clock is not real."""
    fake_clock(monkeypatch)
    calls: list[dict[str, Any]] = []
    real = profiling.profile

    def spy(model: DSN, input: torch.Tensor, *, backward: bool) -> Any:
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        backends = {layer.backend for layer in model.sparse_layers()}
        calls.append({"model": weights, "shape": tuple(input.shape), "backward": backward,
                      "training": model.training, "threads": torch.get_num_threads(),
                      "backends": backends})  # fmt: skip
        return real(model, input, backward=backward)

    monkeypatch.setattr(profiling, "profile", spy)
    return calls


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    out = tmp_path / "run"
    words = ["train", write_data(tmp_path), "--epochs", "6", "--out", str(out), *SMALL]
    assert main([*words, "--update-every-epochs", "1"]) == 0
    return out


def test_a_trained_network(
    run_folder: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    before, threads = files(run_folder), torch.get_num_threads()
    capsys.readouterr()
    with torch.random.fork_rng():
        assert main(["profile", str(run_folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("| layer")
    assert "blocks.1.conv" in printed
    (call,) = asked
    best = checkpoint.load(run_folder / "checkpoint.pt")["best"]["model"]
    assert call.pop("model").keys() == best.keys()
    assert call.pop("backends") == {"auto"}
    assert call == {"shape": (2, 1, 20), "backward": True, "training": True, "threads": 1}
    assert files(run_folder) == before
    assert torch.get_num_threads() == threads


def test_its_best_epoch_and_backend_with_other_shapes(
    run_folder: Path, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = json.loads((run_folder / "config.json").read_text())
    config["network"]["backend"] = "reference"
    (run_folder / "config.json").write_text(json.dumps(config))
    path = tmp_path / "out.json"
    words = ["profile", str(run_folder / "checkpoint.pt"), "--inference", "--batch", "3"]
    assert main([*words, "--length", "31", "--threads", "2", "--json", str(path)]) == 0
    (call,) = asked
    assert call.pop("backends") == {"reference"}
    best = checkpoint.load(run_folder / "checkpoint.pt")["best"]["model"]
    for name, tensor in call.pop("model").items():
        assert torch.equal(tensor, best[name]), name
    assert call == {"shape": (3, 1, 31), "backward": False, "training": False, "threads": 2}
    rows = json.loads(path.read_text())["layers"]
    assert [row["input_shape"] for row in rows] == [[3, 1, 31], [3, 3, 31]]


def test_a_fresh_network(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    words = ["profile", *QUICK_NETWORK, "--seed", "7", "--sparsity", "0.5"]
    assert main([*words, "--channels", "2", "--classes", "3", "--length", "24"]) == 0
    assert main([*words, write_data(tmp_path)]) == 0
    torch.manual_seed(7)
    expected = DSN(2, 3, nf=3, kernel_size=6, depth=2, sparsity=0.5)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(asked[0]["model"][name], tensor), name
    assert [call["shape"] for call in asked] == [(16, 2, 24), (2, 1, 20)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["needs a run, a data set, or all of --channels, --classes and --length"]),
        (["--channels", "1", "--length", "9"], ["--classes is missing"]),
        (
            ["GunPoint", "--classes", "2"],
            ["GunPoint says how many classes", "omit --classes"],
        ),
        (["GunPont"], ["no data set 'GunPont'"]),
        (["no/checkpoint.pt"], ["no/checkpoint.pt needs the config.json of its run beside it"]),
        (["--channels", "1", "--classes", "2", "--length", "0"], ["--length", "got 0"]),
        (["--channels", "0", "--classes", "2", "--length", "9"], ["in_channels", "got 0"]),
        (["--channels", "1", "--classes", "2", "--length", "9", "--threads", "0"], ["--threads"]),
        (["--channels", "1", "--classes", "2", "--length", "9", "--batch", "0"], ["--batch"]),
        (["--channels", "1", "--classes", "2", "--length", "9", "--seed", "-1"], ["seed"]),
        (
            ["--channels", "1", "--classes", "2", "--length", "9", "--json", "."],
            ["cannot be written (it is a folder)"],
        ),
    ],
)
def test_refusals(words: list[str], expected: list[str], refused: Any) -> None:
    refused(["profile", *words], *expected)


def test_a_run_that_cannot_be_read(run_folder: Path, refused: Any) -> None:
    refused(["profile", str(run_folder), "--nf", "4"], "has nf=3, but --nf asks for 4")
    other = run_folder / "other.pt"
    checkpoint.save(other, {"weights": {}})
    refused(["profile", str(other)], "other.pt holds no best epoch")
    (run_folder / "checkpoint.pt").write_bytes(b"")
    refused(["profile", str(run_folder)], "checkpoint.pt is not a readable checkpoint")
    (run_folder / "config.json").write_text("{}")
    refused(["profile", str(run_folder)], "config.json is not the config.json of a run")


def test_the_command_line_is_light() -> None:
    """Parsing a command must not import what only measuring needs."""
    code = (
        "import sys\nfrom sparseconv.cli.main import main\nmain(['info'])\n"
        "assert not {'matplotlib', 'aeon', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
