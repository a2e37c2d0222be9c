"""What values of a row may be, so that one of another program, or a damaged one, is refused."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Kind = Callable[[Any], bool]


def whole(value: Any) -> bool:
    return type(value) is int


def number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def count(value: Any) -> bool:
    return whole(value) and value >= 1


def seconds(value: Any) -> bool:
    return number(value) and value >= 0


def duration(value: Any) -> bool:
    """Of something that takes time."""
    return number(value) and value > 0


def known_seconds(value: Any) -> bool:
    return value is None or seconds(value)


def share(value: Any) -> bool:
    return number(value) and 0 <= value <= 1


def list_of(kind: Kind, least: int = 0) -> Kind:
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(kind, value))


def table_of(kind: Kind) -> Kind:
    """A table with any keys."""
    return lambda value: isinstance(value, dict) and all(map(kind, value.values()))


def table(**kinds: Kind) -> Kind:
    """A table with these keys, and perhaps others."""
    return lambda value: isinstance(value, dict) and not wrong(value, kinds)


def wrong(row: Mapping[str, Any], kinds: Mapping[str, Kind]) -> list[str]:
    """The keys that the row lacks, or has with a value of another kind."""
    return [key for key, kind in kinds.items() if key not in row or not kind(row[key])]


def refuse(row: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise ValueError with what the row has under these keys, if there are any."""
    said = [
        f"{key} ({reprlib.repr(row[key])})" if key in row else f"{key} (it has none)"
        for key in dict.fromkeys(keys)
    ]
    if said:
        raise ValueError(f"it has no usable {', '.join(said)}")
