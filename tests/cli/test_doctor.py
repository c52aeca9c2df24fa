"""``panbench doctor`` tells what a run would use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from panbench.cli import doctor


def test_versions_name_torch_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("numpy", "no-such-package"))
    lines = {name: (good, found) for name, good, found in doctor.versions()}
    assert torch.__version__ in lines["torch"][1]
    assert lines["numpy"][0]
    assert lines["no-such-package"] == (False, "not installed: pip install no-such-package")


def test_a_missing_compiler_is_said_with_its_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    lines = {name: (good, found) for name, good, found in doctor.compilers()}
    assert lines["c++"] == (False, "not found; needed for CPU kernels")
    assert lines["nvcc"] == (False, "not found; needed for CUDA kernels")


def test_a_data_root_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "scene0001_00" / "color").mkdir(parents=True)
    found = {name: text for name, _, text in doctor.folders(str(tmp_path))}
    assert "1 ScanNet scenes" in found["data root"]
    missing = {name: (good, text) for name, good, text in doctor.folders(str(tmp_path / "none"))}
    assert missing["data root"][0] is False


def test_the_report_has_all_sections(panbench: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "back_ends", lambda: iter([("reference", True, "pure torch")]))
    answer = panbench("doctor")
    assert answer.status == 0
    for word in ("versions", "back ends", "compilers", "folders", "reference"):
        assert word in answer.out


def test_a_machine_that_cannot_run_has_status_one(panbench: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "back_ends", lambda: iter([("reference", False, "no torch")]))
    assert panbench("doctor").status == 1
