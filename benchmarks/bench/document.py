"""Read, write and query the document of a benchmark run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparseconv.core.files import write_whole
from sparseconv.measure.timing import Estimate

Row = Mapping[str, Any]

BEST = "best"  # whichever baseline is the fastest
OURS = ("plain_step", "compiled", "exported")  # our kernels again, so not baselines


def read(path: Path) -> dict[str, Any]:
    """Read a file that ``write_json`` wrote."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write the document, with one line per list entry for readable diffs."""
    parts = []
    for key, value in document.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(map(json.dumps, value)) + "]"
        parts.append(f"{json.dumps(key)}: {text}")
    write_whole(path, "{" + ",\n".join(parts) + "}\n")


def write_csv(document: Mapping[str, Any], path: Path) -> None:
    """Write the rows, in columns such as ``ms_conv1d``, ``ratio_conv1d``, ``ratio_conv1d_low``."""
    flat = []
    for row in document["rows"]:
        line = {key: row[key] for key in row if key not in ("ms", "ratio", "absent")}
        line |= {f"ms_{name}": ms for name, ms in row["ms"].items()}
        for name, three in row["ratio"].items():
            ends = (f"ratio_{name}{end}" for end in ("", "_low", "_high"))
            line |= dict(zip(ends, three, strict=True))
        flat.append(line)
    text = io.StringIO()
    names = dict.fromkeys(name for line in flat for name in line)
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_whole(path, text.getvalue())


def rounded(value: Any) -> Any:
    """Round every float in lists and dicts to five significant digits.

    Example:
        >>> rounded([{"ms": 1.23456789, "nnz": 1234567, "data": "ACSF1"}, None])
        [{'ms': 1.2346, 'nnz': 1234567, 'data': 'ACSF1'}, None]
    """
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list) else value


def best_baseline(row: Row) -> str | None:
    """Return the name of a row's fastest baseline, or None if no baseline was timed."""
    timed = {name: three[0] for name, three in row["ratio"].items() if name not in OURS}
    return min(timed, key=lambda name: timed[name]) if timed else None


def ratio(row: Row, baseline: str = BEST) -> Estimate | None:
    """Return the ratio of a baseline's time to the sparse time; None if the row has none."""
    found = row["ratio"].get(best_baseline(row) if baseline == BEST else baseline)
    return None if found is None else Estimate(*found)
