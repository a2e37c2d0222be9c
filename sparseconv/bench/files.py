"""The files of a benchmark run: each is written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparseconv.core.files import write_whole

DIGITS = 5  # of a measured number: it repeats to three at best


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write everything, each entry of a list on its own line."""
    write_whole(path, dumps(document))


def dumps(document: Mapping[str, Any]) -> str:
    """The text of ``write_json``: small, and readable line by line in a diff.

    Example:
        >>> print(dumps({"schema": 1, "rows": [{"ms": 1.5}, {"ms": 2.0}]}), end="")
        {"schema": 1,
        "rows": [
        {"ms": 1.5},
        {"ms": 2.0}]}
    """
    parts = []
    for key, value in document.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(map(json.dumps, value)) + "]"
        parts.append(f"{json.dumps(key)}: {text}")
    return "{" + ",\n".join(parts) + "}\n"


def rounded(value: Any) -> Any:
    """Lists and dicts with every float in them rounded to five significant digits.

    Example:
        >>> rounded([{"ms": 1.23456789, "nnz": 1234567, "data": "ACSF1"}, None])
        [{'ms': 1.2346, 'nnz': 1234567, 'data': 'ACSF1'}, None]
    """
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list) else value


def write_csv(document: Mapping[str, Any], path: Path) -> None:
    """Write the rows: ``ms_conv1d``, ``ratio_conv1d``, ``ratio_conv1d_low`` ... for each rival."""
    flat = [flatten(row) for row in document["rows"]]
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_whole(path, text.getvalue())


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
