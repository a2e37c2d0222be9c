"""The files of a benchmark run: each is written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparseconv._files import write_whole


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write everything."""
    write_whole(path, json.dumps(document, indent=1) + "\n")


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
