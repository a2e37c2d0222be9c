"""What version 0.1 wrote before its modules moved: it loads, and computes the same."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from child import TESTS

import sparseconv as sc
from sparseconv.core import moved

OLD = json.loads((TESTS / "support" / "data" / "written_by_0_1.json").read_text(encoding="utf-8"))
SERIES = torch.tensor(OLD["expected"]["series"])


def written(name: str) -> bytes:
    return zlib.decompress(base64.b64decode(OLD["files"][name]))


def assert_same(got: torch.Tensor, name: str) -> None:
    # The kernels' bits do not depend on the instruction set, but torch's own layers' do.
    torch.testing.assert_close(got, torch.tensor(OLD["expected"][name]))


def test_a_layer_and_its_pattern() -> None:
    layer = pickle.loads(written("layer.pkl"))
    assert type(layer) is sc.SparseConv1d
    assert_same(layer(SERIES), "layer")
    assert pickle.loads(written("pattern.pkl")) == layer.pattern
    layer(SERIES).sum().backward()
    assert layer.values.grad is not None


def test_state_dicts() -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    states = {
        "torch": torch.load(io.BytesIO(written("layer.pt"))),
        "safetensors": safetensors.load(written("layer.safetensors")),
    }
    for state in states.values():
        layer = sc.SparseConv1d(1, 4, 5, padding=(1, 3), padding_mode="replicate", density=0.4)
        layer.load_state_dict(state)
        assert_same(layer(SERIES), "layer")


def test_an_exported_program_has_to_be_exported_again() -> None:
    program = torch.export.load(io.BytesIO(written("program.pt2"))).module()
    with pytest.raises(ValueError, match="older sparseconv exported has to be exported again"):
        program(SERIES)


@pytest.mark.parametrize(("file", "name"), [("network", "run"), ("inference", "inference")])
def test_networks(file: str, name: str) -> None:
    network = pickle.loads(written(f"{file}.pkl"))
    with torch.no_grad():
        assert_same(network(SERIES), name)
    again = pickle.loads(pickle.dumps(network))
    with torch.no_grad():
        assert_same(again(SERIES), name)


def test_a_classifier() -> None:
    pytest.importorskip("aeon")
    classifier = pickle.loads(written("classifier.pkl"))
    np.testing.assert_allclose(
        classifier.predict_proba(SERIES.numpy()), OLD["expected"]["classifier"], rtol=1e-5
    )


def test_a_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("aeon")
    for name in ("config.json", "history.csv", "checkpoint.pt"):
        (tmp_path / name).write_bytes(written(f"run/{name}"))
    run = sc.load_run(tmp_path)
    with torch.no_grad():
        assert_same(run.model.eval()(SERIES), "run")


@pytest.mark.parametrize("old", moved.MOVED)
def test_every_moved_module_is_found(old: str) -> None:
    module: Any = __import__(f"sparseconv.{old}", fromlist=["x"])
    with pytest.raises(AttributeError, match=r"has moved to .*, without 'nothing'"):
        module.nothing  # noqa: B018


def test_an_old_module_under_the_name_of_a_new_package() -> None:
    from sparseconv import pruning
    from sparseconv.dst.update import prune_and_grow

    assert pruning.prune_and_grow is prune_and_grow
    names = ("GROWTHS", "carry_over", "check_growth", "check_regions", "cosine_decay")
    assert all(hasattr(pruning, name) for name in names)
    for name in ("nothing", "Tensor", "math"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(pruning, name)


def test_a_pickled_gradient_hook() -> None:
    hook = pickle.loads(b"csparseconv._gradient_watch\nGradientWatch\n(tR.")
    assert type(hook).__name__ == "DenseGradientHook"


def test_public_classes_name_the_public_module() -> None:
    for public in (sc.SparseConv1d, sc.KernelCSR, sc.Region, sc.DSTScheduler):
        assert public.__module__ == "sparseconv"
        assert getattr(sc, public.__name__) is public
        assert b"sparseconv.core" not in pickle.dumps(public)


def test_paths_that_were_promised() -> None:
    from sparseconv.datasets import load
    from sparseconv.dst import DSTScheduler, prune_and_grow
    from sparseconv.functional import sparse_conv1d
    from sparseconv.models import DSN
    from sparseconv.reference import MaskedConv1d, conv1d_dense, conv1d_oracle, dense_weight
    from sparseconv.testing import error_bound, random_case
    from sparseconv.training import TrainingResult, train

    found = [load, DSTScheduler, prune_and_grow, sparse_conv1d, DSN, MaskedConv1d, conv1d_dense]
    found += [conv1d_oracle, dense_weight, error_bound, random_case, TrainingResult, train]
    assert all(map(callable, found))


def test_a_scheduler_goes_through_the_updates_of_before() -> None:
    layer, optimizer, dst = pickle.loads(written("scheduler.pkl"))
    for _ in range(4):
        optimizer.zero_grad()
        layer(SERIES).square().mean().backward()
        optimizer.step()
        dst.step()
    expected = OLD["expected"]["scheduler"]
    assert dst.updates == expected["updates"]
    assert layer.col_indices.tolist() == expected["col_indices"]
    torch.testing.assert_close(layer.values.detach(), torch.tensor(expected["values"]))


def test_results_of_convert_and_profile() -> None:
    """What was made survives; of the report only its facts, for its classes are others now."""
    network, report = pickle.loads(written("conversion.pkl"))
    assert_same(network(SERIES), "conversion")
    assert [layer.name for layer in report.layers] == ["0"]
    assert [layer.nnz for layer in pickle.loads(written("profile.pkl")).layers] == [8]
