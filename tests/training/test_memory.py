"""Freed memory stays with the process."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from panbench.training import memory

FAULTS = """
import resource, sys
import numpy as np
from panbench.training.memory import keep_freed_memory

def use():
    np.empty(30_000_000, np.uint8)[::4096] = 1

if sys.argv[1] == "keep":
    assert keep_freed_memory()
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_large_block_that_was_freed_is_used_again_without_page_faults() -> None:
    def faults(mode: str) -> int:
        environment = {"PYTHONPATH": ":".join(p for p in sys.path if p), "NUMPY_MADVISE_HUGEPAGE": "0"}
        command = [sys.executable, "-c", FAULTS, mode]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    # Transparent huge pages may make the default cheaper, never the kept memory dearer.
    assert faults("keep") < 100
    assert faults("keep") <= faults("default")


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert memory.keep_freed_memory() is False


def test_a_refusal_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Refusing())
    assert memory.keep_freed_memory() is False
