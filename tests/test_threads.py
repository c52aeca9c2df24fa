"""Environment of waiting threads."""

from __future__ import annotations

import os

import pytest

from panbench.threads import brief_waits


def test_waits_are_brief_unless_the_user_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    # Set and removed, so that what brief_waits sets is undone at the end.
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert brief_waits()
    assert int(os.environ["GOMP_SPINCOUNT"]) < 100_000
    assert not brief_waits()


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_is_set_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "active")
    before = dict(os.environ)
    assert not brief_waits()
    assert dict(os.environ) == before
