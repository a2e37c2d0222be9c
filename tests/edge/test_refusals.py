"""What cannot be exported: one clear error, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edge_networks import network, series
from torch import nn

import sparseconv as sc
from sparseconv import SparseConv1d, models
from sparseconv.core import files, folders
from sparseconv.edge.export import WEIGHTS


class Own(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OwnConv(nn.Conv1d):
    pass


def hooked() -> nn.Module:
    model = network("stride")
    model[0].register_forward_hook(lambda *_: None)
    return model


def hooked_as_a_whole() -> nn.Module:
    model = network("dsn")
    model.head.register_forward_hook(lambda *_: None)
    return model


def not_finite(value: float) -> nn.Module:
    model = network("dsn")
    with torch.no_grad():
        model.blocks[1].conv.values[3] = value
    return model


def bad_statistics() -> nn.Module:
    model = network("dsn")
    model.blocks[2].norm.running_var[0] = -1
    return model


def in_training() -> nn.Module:
    model = network("dsn")
    model.blocks[1].norm.train()
    return model


def ends(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv1d(3, 4, 3), *modules).eval()


def hooked_inside() -> nn.Module:
    inner = nn.Sequential(nn.ReLU())
    inner.register_forward_hook(lambda *_: None)
    return nn.Sequential(nn.Conv1d(3, 4, 3), inner, *FLAT).eval()


def own_forward() -> nn.Module:
    model = network("stride")
    model[0].forward = lambda x: x
    return model


FLAT = (nn.AdaptiveAvgPool1d(1), nn.Flatten())
MODELS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no module": (lambda: 3, TypeError, "nn.Module, but got int"),
    "unknown layer": (ends(Own(), *FLAT), NotImplementedError, r"module '1' \(Own\)"),
    "unknown model": (lambda: Own().eval(), NotImplementedError, r"the model \(Own\)"),
    "subclass": (lambda: nn.Sequential(OwnConv(3, 4, 3), *FLAT).eval(), NotImplementedError,
                 r"module '0' \(OwnConv\)"),
    "lstm": (ends(nn.LSTM(4, 4)), NotImplementedError, "LSTM"),
    "a residual network": (lambda: models.ResNet(3, 2).eval(), NotImplementedError, "ResNet"),
    "max pooling": (ends(nn.MaxPool1d(2), *FLAT), NotImplementedError, "MaxPool1d"),
    "hooks": (hooked, NotImplementedError, "module '0'.*hooks"),
    "hooks of a sequence": (hooked_as_a_whole, NotImplementedError, "module 'head'.*hooks"),
    "hooks inside": (ends(hooked(), nn.Flatten()), NotImplementedError, r"module '1.0'.*hooks"),
    "hooks of a sequence inside": (hooked_inside, NotImplementedError, "module '1'.*it has hooks"),
    "a forward of its own": (own_forward, NotImplementedError, "module '0'.*forward of its own"),
    "complex": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, dtype=torch.complex64), *FLAT).eval(),
                NotImplementedError, "'0.weight' is complex"),
    "no weights": (lambda: nn.Sequential(nn.Flatten(), nn.LogSoftmax(1)).eval(), ValueError,
                   "computes nothing"),
    "padding of features": (ends(*FLAT, nn.ZeroPad1d(1)), ValueError, "it gets features"),
    "padding at the end": (ends(nn.ZeroPad1d(1)), ValueError, "none follows"),
    "infinite scores": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), *FLAT).eval().requires_grad_(
        False).apply(lambda m: m.weight.fill_(3e38) if hasattr(m, "weight") else None),
        ValueError, "infinite or no numbers"),
    "a layer after the end": (ends(*FLAT, nn.Softmax(1), nn.Linear(4, 2)), NotImplementedError,
                              "follows the softmax"),
    "padding before a linear layer": (ends(nn.ZeroPad1d(1), *FLAT), NotImplementedError,
                                      "follows a padding layer"),
    "training mode": (lambda: network("dsn").train(), ValueError, r"call model.eval\(\)"),
    "one module in training mode": (in_training, ValueError, "'blocks.1.norm' is in training"),
    "NaN": (lambda: not_finite(np.nan), ValueError, "blocks.1.conv.*finite weights"),
    "infinity": (lambda: not_finite(np.inf), ValueError, "blocks.1.conv.*finite weights"),
    "a negative variance": (bad_statistics, ValueError, "blocks.2.norm.*finite weights"),
    "no statistics": (ends(nn.BatchNorm1d(4, track_running_stats=False), *FLAT), ValueError,
                      "running statistics"),
    "no classes": (ends(nn.ReLU()), ValueError, "end it with nn.Flatten"),
    "other channels": (lambda: nn.Sequential(nn.Conv1d(5, 4, 3), *FLAT).eval(), ValueError,
                       "expected 5 input channels"),
    "kernel too long": (lambda: nn.Sequential(nn.Conv1d(3, 4, 40), *FLAT).eval(), ValueError,
                        "Kernel size can't be greater"),
    "a linear layer without features": (ends(nn.Linear(20, 2)), ValueError, "nn.Flatten"),
    "other features": (ends(*FLAT, nn.Linear(5, 2)), ValueError, "expected 5 features"),
    "another norm": (ends(nn.BatchNorm1d(7), *FLAT), ValueError, "expected 7 channels"),
    "flattened otherwise": (ends(nn.Flatten(0)), ValueError, "with its defaults"),
    "softmax over time": (ends(*FLAT, nn.Softmax(0)), ValueError, "dim=1"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_models(name: str, weights: str, tmp_path: Path) -> None:
    make, kind, text = MODELS[name]
    model = make()
    known = series(3) if weights == "int8" else None
    with pytest.raises(kind, match=text):
        sc.export_c(model, series(3), tmp_path / "a", weights=weights, calibration=known)
    assert not any(tmp_path.iterdir())


ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one series alone": ({"example_input": series(1)[0]}, ValueError, r"x\[None, None\]"),
    "no series": ({"example_input": series(0)}, ValueError, "none of them 0"),
    "words": ({"example_input": [["a"]]}, TypeError, "array of numbers"),
    "a sparse tensor": ({"example_input": series(1).to_sparse()}, TypeError, "array of numbers"),
    "complex series": ({"example_input": series(1) + 0j}, TypeError, "they are complex"),
    "too few names": ({"classes": ["a"]}, ValueError, "expected 4 names of classes, but got 1"),
    "a number of classes": ({"classes": 4}, TypeError, "a list of 4 names .*, but got 4"),
    "one text for all names": ({"classes": "abcd"}, TypeError, "a list of 4 names .* got 'abcd'"),
    "names in bytes": ({"classes": b"abcd"}, TypeError, "a list of 4 names .* got b'abcd'"),
    "series near zero": ({"weights": "int8", "calibration": series(5) * 1e-42}, ValueError,
                         "ends of float32; scale them"),
    "a series with NaN": ({"example_input": series(1) * np.nan}, ValueError, "finite"),
    "other channels": ({"example_input": series(1, channels=2)}, ValueError, "channels"),
    "calibration of floats": ({"weights": "float32", "calibration": series(5)}, ValueError,
                              "calibration is for weights='int8', but weights is 'float32'"),
    "no calibration": ({"weights": "int8", "calibration": None}, ValueError,
                       "pass calibration=X_train"),
    "calibration of another length": ({"weights": "int8", "calibration": series(5, length=30)},
                                      ValueError, r"\(3, 22\), but got \(3, 30\)"),
    "calibration with NaN": ({"weights": "int8", "calibration": series(5) * np.nan}, ValueError,
                             "calibration must be finite"),
    "other weights": ({"weights": "int4"}, ValueError, "float32.*int8.*int4"),
    **{
        f"name {name!r}": ({"name": name}, ValueError, "C identifier")
        for name in ("", "1d", "a-b", "a b", "_a", "é", "a.c", "../a", "a\n", 3, None)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name: str, tmp_path: Path) -> None:
    changed, kind, text = ARGUMENTS[name]
    arguments = {"example_input": series(3), "folder": tmp_path / "a", **changed}
    with pytest.raises(kind, match=text):
        sc.export_c(network("dsn"), **arguments)
    assert not any(tmp_path.iterdir())


def test_series_of_another_length_than_the_networks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 40 features"):
        sc.export_c(network("flattened"), series(2, length=30), tmp_path / "a")


def test_sums_too_large_for_int32(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(140_000, 2)).eval()
    with torch.no_grad():
        model[1].weight.fill_(1)
    X = series(2, channels=1, length=140_000)
    with pytest.raises(ValueError, match="too large for int32; export float32"):
        sc.export_c(model, X, tmp_path / "a", weights="int8", calibration=X)
    assert not any(tmp_path.iterdir())


def test_folders(tmp_path: Path) -> None:
    model, X = network("dsn"), series(3)
    file, full = tmp_path / "file", tmp_path / "full"
    file.write_text("mine")
    full.mkdir()
    (full / "dsn.c").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        sc.export_c(model, X, file)
    with pytest.raises(ValueError, match="holds files"):
        sc.export_c(model, X, full)
    with pytest.raises(ValueError, match="cannot be written"):
        sc.export_c(model, X, file / "below")
    for place in (Path("/proc/nothing/here"), tmp_path / ("x" * 300), tmp_path / "p" / ("y" * 300)):
        with pytest.raises(ValueError, match="cannot be written"):
            sc.export_c(model, X, place)
    assert sorted(tmp_path.iterdir()) == [file, full]
    assert (file.read_text(), (full / "dsn.c").read_text()) == ("mine", "mine")
    assert os.listdir(full) == ["dsn.c"]
    (tmp_path / "empty").mkdir()
    assert len(os.listdir(sc.export_c(model, X, tmp_path / "empty"))) == 4
    assert len(os.listdir(sc.export_c(model, X, tmp_path / "new" / "one"))) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"file", "full", "empty", "new"}


def test_folders_that_exist_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, X = network("stride"), series(3)
    own, linked = tmp_path / "own", tmp_path / "linked"
    (tmp_path / "usual").mkdir()
    new = Path(sc.export_c(model, X, tmp_path / "new"))
    assert new.stat().st_mode == (tmp_path / "usual").stat().st_mode  # others may read it
    own.mkdir(mode=0o700)
    (tmp_path / "target").mkdir()
    linked.symlink_to(tmp_path / "target")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (own, linked, "."):
        assert len(os.listdir(sc.export_c(model, X, folder))) == 4
    assert own.stat().st_mode & 0o777 == 0o700
    assert linked.is_symlink()


def test_series_in_any_memory(tmp_path: Path) -> None:
    model, X = network("stride"), series(3).numpy()
    straight, backwards = (
        sc.export_c(model, x, tmp_path / name) for x, name in ((X, "a"), (X[::-1][::-1], "b"))
    )
    assert (straight / "dsn_test.c").read_text() == (backwards / "dsn_test.c").read_text()


@pytest.mark.parametrize("folder", ["a", "p/q/a", "there"])
@pytest.mark.parametrize("after", range(4))
def test_a_full_disk_leaves_nothing(
    after: int, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    count = iter(range(9))

    def write(path: Path, text: str) -> None:
        if next(count) == after:
            raise OSError(28, "No space left on device")
        files.write_whole(path, text)

    monkeypatch.setattr(folders, "write_whole", write)
    with pytest.raises(ValueError, match="No space left on device"):
        sc.export_c(network("stride"), series(3), tmp_path / folder)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_layers_without_finite_bias() -> None:
    conv = SparseConv1d(1, 1, 1)
    with torch.no_grad():
        assert conv.bias is not None
        conv.bias.fill_(np.nan)
    with pytest.raises(ValueError, match=r"module '0'.*finite"):
        sc.export_c(nn.Sequential(conv, nn.Flatten()).eval(), series(1, channels=1), "never")
    assert not Path("never").exists()
