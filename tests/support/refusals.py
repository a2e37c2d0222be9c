"""One table of refusals for each public function: the call, the error, a fragment of its text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

Row = tuple[Callable[[], Any], type[Exception], str]


def refuses(call: Callable[[], Any], error: type[Exception], fragment: str) -> None:
    """Check that the call raises this error and says the fragment.

    Example:
        >>> refuses(lambda: int("a"), ValueError, "invalid literal")
    """
    with pytest.raises(error, match=re.escape(fragment)):
        call()


def changed(thing: Any, change: Callable[[Any], Any]) -> Any:
    """Return ``thing`` after ``change(thing)``, for a row of one expression.

    Example:
        >>> changed([3, 1], list.sort)
        [1, 3]
    """
    change(thing)
    return thing


def refusals(*rows: Row) -> Callable[..., None]:
    """Make a test that each row ``refuses``; its fragment is its name."""

    @pytest.mark.parametrize(("call", "error", "fragment"), rows, ids=[row[2] for row in rows])
    def test(call: Callable[[], Any], error: type[Exception], fragment: str) -> None:
        refuses(call, error, fragment)

    return test
