"""The results folder of a run, before it is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sparseconv import datasets
from sparseconv.core.files import partial_files, write_whole
from sparseconv.core.folders import LOCK_NAME
from sparseconv.training.data import digest
from sparseconv.training.loop import CHECKPOINT_NAME
from sparseconv.training.run_folder import CONFIG_NAME, DATA, MODEL_NAME


def check_free(out: Path, *, resumable: bool = True) -> None:
    """Refuse a results folder that holds anything worth keeping, or name what goes on with it."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"the results folder {out} is a file; choose another with --out")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    unfinished = [*partial_files(out / CONFIG_NAME), *partial_files(out / CHECKPOINT_NAME)]
    # A run that ended before its first checkpoint leaves nothing worth keeping.
    if found - {CONFIG_NAME, LOCK_NAME, *(path.name for path in unfinished)}:
        if CONFIG_NAME in found:
            resumable = resumable and MODEL_NAME not in found
            resume = "resume it with --resume, or " if resumable else ""
            raise ValueError(f"{out} holds a run already; {resume}choose another folder with --out")
        raise ValueError(
            f"expected a new or empty results folder, but {out} holds other files; choose another "
            "with --out"
        )


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


def data_facts(data: datasets.Dataset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What ``config.json`` says of the data, by which another data set is told."""
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


def data_of_run(
    facts: Mapping[str, Any], given: str | None, folder: str | Path
) -> datasets.Dataset:
    """The data that a run was trained on: the bundled set of its name, or what ``--data`` names.

    Args:
        facts: of ``data_facts``, from the run's configuration.
        given: a name or path; None for the run's own.
        folder: of the run, for messages.

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
