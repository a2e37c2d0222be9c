"""What a plan may say of networks made smaller: each key of a variant, checked before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.paper import kinds
from benchmarks.paper.criteria import CRITERIA, WITHOUT_RATIO
from sparseconv.pruning.factorize import METHODS

# By key: what is expected, and whether a value is.
KEYS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a text of one line", kinds.text),
    "criterion": (f"one of {', '.join(CRITERIA)}", lambda value: value in list(CRITERIA)),
    "ratio": ("a share from 0 to below 1", lambda value: kinds.share(value) and value < 1),
    "steps": ("a number of steps, at least 1", kinds.count),
    "equivalent": ("true or false", lambda value: isinstance(value, bool)),
    "factorize": (f"one of {', '.join(METHODS)}", lambda value: value in list(METHODS)),
    "compression": ("a number above 1", lambda value: kinds.number(value) and value > 1),
    "retrain": ("true or false", lambda value: isinstance(value, bool)),
    "sparsity": ("a share from 0 to below 1", lambda value: kinds.share(value) and value < 1),
}
# What each of these keys would be ignored without.
NEEDS = {
    "ratio": "criterion", "steps": "criterion", "equivalent": "criterion",
    "compression": "factorize", "factorize": "compression",
}  # fmt: skip


def variant_name(run: str, variant: Mapping[str, Any]) -> str:
    """What tables call what became of a run's network."""
    return f"{run}, {variant['name']}"


def check_variants(variants: Any) -> None:
    """Refuse what ``pruning`` asks for that cannot be done, or that would be ignored.

    Raises:
        ValueError: the message names the key.
    """
    if not isinstance(variants, list) or not all(
        isinstance(variant, dict) and "name" in variant for variant in variants
    ):
        raise ValueError(f"pruning must be a list of tables with a name, but got {variants!r}")
    for variant in variants:
        for key, value in variant.items():
            if key not in KEYS:
                raise ValueError(f"unknown key pruning.{key}; known are {', '.join(sorted(KEYS))}")
            expected, is_right = KEYS[key]
            if not is_right(value):
                raise ValueError(f"pruning.{key} must be {expected}, but got {value!r}")
            if (needed := NEEDS.get(key)) and needed not in variant:
                raise ValueError(f"pruning.{key} of {variant['name']!r} needs {needed}")
        if (name := variant.get("criterion")) and ("ratio" in variant) == (name in WITHOUT_RATIO):
            wants = "finds out how many filters go; leave its ratio out"
            raise ValueError(
                f"pruning's {variant['name']!r}: {name} "
                f"{wants if name in WITHOUT_RATIO else 'needs a ratio, the share of the filters'}"
            )
        if {"criterion", "factorize"} <= variant.keys():
            raise ValueError(f"{variant['name']!r} of pruning has both criterion and factorize")
    names = [variant["name"] for variant in variants]
    if len(set(names)) < len(names):
        raise ValueError("pruning names a variant twice")
