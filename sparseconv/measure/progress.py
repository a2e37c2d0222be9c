"""Show progress on stderr."""

from __future__ import annotations

import warnings
from typing import Any


def progress(items: Any, verbose: bool | None, **options: Any) -> Any:
    """Return a tqdm bar over the items, or the items themselves if no bar is shown.

    Args:
        items: an iterable; None for a bar that is updated manually.
        verbose: whether to show the bar; None shows it only in a terminal.
        options: passed to tqdm.
    """
    if verbose is not None and not verbose:
        return items
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if verbose:
            warnings.warn("no progress bar: tqdm is not installed (pip install tqdm)", stacklevel=3)
        return items
    return tqdm(items, disable=False if verbose else None, **options)
