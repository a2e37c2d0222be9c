"""Progress on stderr."""

from __future__ import annotations

import warnings
from typing import Any


def progress(items: Any, verbose: bool | None, **options: Any) -> Any:
    """Return tqdm's bar over the items, or the items if no bar is shown.

    Args:
        items: an iterable; None for a bar updated by hand.
        verbose: whether to show it; None shows it in a terminal.
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
