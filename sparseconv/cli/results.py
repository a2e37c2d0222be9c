"""The results folder of a run, before it is written."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sparseconv import datasets
from sparseconv.core.files import LOCK_NAME, check_writable, claimed, partial_files, write_whole
from sparseconv.models import DSN
from sparseconv.training.data import digest
from sparseconv.training.loop import CHECKPOINT_NAME
from sparseconv.training.run_folder import CONFIG_NAME, DATA, MODEL_NAME, TrainedRun, load_run


@contextlib.contextmanager
def new_folder(out: Path, *, resumable: bool = True) -> Iterator[None]:
    """Claim a results folder that is new or empty; if the block writes nothing, it goes again.

    Raises:
        ValueError: it holds anything worth keeping, or another run writes there.
    """
    try:
        with claimed(out):
            found = {path.name for path in out.iterdir()} - {LOCK_NAME}
            for name in (CONFIG_NAME, CHECKPOINT_NAME):
                found -= {path.name for path in partial_files(out / name)}
            # A run that ended before its first checkpoint leaves nothing worth keeping.
            if found - {CONFIG_NAME}:
                what = "a run already; " if CONFIG_NAME in found else "other files; "
                if CONFIG_NAME in found and resumable and MODEL_NAME not in found:
                    what += "resume it with --resume, or "
                raise ValueError(f"{out} holds {what}choose another folder with --out")
            check_writable(out / CONFIG_NAME)
            yield
    except BaseException:
        with contextlib.suppress(OSError):
            out.rmdir()
        raise


def history_writer(path: Path) -> Callable[[list[dict[str, Any]]], None]:
    """Write the whole history at the first call, then add each epoch's row as it comes."""
    begun = False

    def write(history: list[dict[str, Any]]) -> None:
        nonlocal begun
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=history[0], lineterminator="\n")
        if begun:
            writer.writerow(history[-1])
            with path.open("a", encoding="utf-8") as file:
                file.write(text.getvalue())
        else:
            writer.writeheader()
            writer.writerows(history)
            write_whole(path, text.getvalue())
        begun = True

    return write


def described(data: datasets.Dataset) -> str:
    """Write the data's name and sizes."""
    return (
        f"{data.name}: {len(data.X_train)} training and {len(data.X_test)} test series, "
        f"{data.n_channels} x {data.n_timepoints}, {len(data.classes)} classes"
    )


def data_facts(data: datasets.Dataset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What ``config.json`` says of the data, used to detect another data set."""
    return {
        "name": data.name,
        "n_train": len(data.X_train),
        "n_test": len(data.X_test),
        "n_channels": data.n_channels,
        "n_timepoints": data.n_timepoints,
        "classes": data.classes.tolist(),
        "train_sha256": digest(torch.from_numpy(data.X_train), torch.from_numpy(data.y_train)),
        "test_sha256": digest(torch.from_numpy(data.X_test), torch.from_numpy(data.y_test)),
        **{name: settings[name] for name in DATA},
    }


def load_network(path: str | Path) -> tuple[TrainedRun, DSN]:
    """Load a run with its network; ValueError if it holds random kernels."""
    run = load_run(path)
    if isinstance(run.model, DSN):
        return run, run.model
    raise ValueError(f"{path} holds random kernels; expected the run of a Dynamic Sparse Network")


def data_of_run(
    facts: Mapping[str, Any], given: str | None, folder: str | Path
) -> datasets.Dataset:
    """Load the data that a run was trained on: the bundled set of its name, or ``given``.

    Raises:
        ValueError: the data are others, or the run's own are not bundled.
    """
    if given is None and facts["name"] not in datasets.BUNDLED:
        raise ValueError(
            f"{folder} was trained on {facts['name']!r}, which is not bundled; name its data with "
            "--data"
        )
    data = datasets.load(given or facts["name"], nan_to_zero=facts["nan_to_zero"])
    if different := difference(data_facts(data, facts), facts):
        raise ValueError(
            f"{data.name} is not what {folder} was trained on, {different}; name the data of the "
            "run with --data"
        )
    return data


def difference(facts: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """How data differ from those of a run, in words; empty if at most in their name."""
    for name, value in facts.items():
        if name != "name" and known.get(name) != value:
            return f"its {name} is {value!r}, there {known.get(name)!r}"
    return ""
