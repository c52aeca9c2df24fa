"""Every parser of untrusted files, fuzzed with few inputs; ``tools/fuzz_parsers.py`` runs the same with many."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import check

import fuzz_parsers


@pytest.mark.parametrize("name", fuzz_parsers.TARGETS)
def test_damaged_input_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    target = fuzz_parsers.TARGETS[name](tmp_path)
    report = check(target.parse, target.seeds, 100)
    assert report.read + report.refused == 100
    assert report.refused > 0
