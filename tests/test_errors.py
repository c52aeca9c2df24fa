"""The promise that every error is one printable line."""

from __future__ import annotations

import pytest

from panbench.errors import UserError


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/data/Küche/1.png: cannot be read", "/data/Küche/1.png: cannot be read"),
        ("a\x00b\x1b[31m: no", "a?b?[31m: no"),
        ("first\nsecond\r\nthird\u2028fourth", "first second third fourth"),
    ],
)
def test_messages_are_one_printable_line(message: str, shown: str) -> None:
    assert str(UserError(message)) == shown
