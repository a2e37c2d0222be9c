"""The files of a benchmark run: each is written whole or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write everything."""
    replace(path, json.dumps(document, indent=1) + "\n")


def write_csv(document: Mapping[str, Any], path: Path) -> None:
    """Write the rows: ``ms_conv1d``, ``ratio_conv1d``, ``ratio_conv1d_low`` ... for each rival."""
    flat = [flatten(row) for row in document["rows"]]
    names = list(dict.fromkeys(name for row in flat for name in row))
    with partial_path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    partial_path(path).replace(path)


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without dicts and lists; the reasons of absent rivals are left to the JSON.

    Example:
        >>> flatten({"case": "a", "ms": {"fft": 2.0}, "ratio": {"fft": [3, 2, 4]}, "absent": {}})
        {'case': 'a', 'ms_fft': 2.0, 'ratio_fft': 3, 'ratio_fft_low': 2, 'ratio_fft_high': 4}
    """
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key == "ms":
            flat |= {f"ms_{name}": ms for name, ms in value.items()}
        elif key == "ratio":
            for name, three in value.items():
                ends = zip(("", "_low", "_high"), three, strict=True)
                flat |= {f"ratio_{name}{end}": number for end, number in ends}
        elif key != "absent":
            flat[key] = value
    return flat


def partial_path(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(path.name + ".partial")


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial_path(path).write_text(text, encoding="utf-8")
    partial_path(path).replace(path)
