"""``tools/check_cuda.py`` fails where a kernel spills, warns, or is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[1] / "tools" / "check_cuda.py"
REPORT = """ptxas info    : Compiling entry function 'first' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
ptxas info    : Compiling entry function 'second' for 'sm_90'
    8 bytes stack frame, {stores} bytes spill stores, 4 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers
"""


def check(folder: Path, script: str, source: str = "one.cu") -> subprocess.CompletedProcess[str]:
    """The tool on one source, with a script in the place of nvcc."""
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/usr/bin/env bash\n{script}\n")
    nvcc.chmod(0o755)
    (folder / source).touch()
    (folder / "api.h").touch()
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = [sys.executable, str(TOOL), "--sources", str(folder), "--architectures", "90"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_kernel_that_spills_is_named(tmp_path: Path) -> None:
    answer = check(tmp_path, f"cat <<'END'\n{REPORT.format(stores=12)}END")
    assert answer.returncode == 1
    assert "one.cu sm_90: registers spill in second for sm_90 (8 bytes of stack)" in answer.stdout


def test_what_does_not_compile_is_shown(tmp_path: Path) -> None:
    answer = check(tmp_path, 'echo "one.cu(3): error: unused variable"; exit 1')
    assert answer.returncode == 1
    assert "one.cu sm_90: does not compile\none.cu(3): error: unused variable" in answer.stdout


def test_a_report_without_spills_in_it_is_not_taken_for_a_good_one(tmp_path: Path) -> None:
    answer = check(tmp_path, "echo \"Compiling entry function 'first' for 'sm_90'\"")
    assert answer.returncode == 1
    assert "ptxas says nothing about spills" in answer.stderr


def test_cubs_kernels_may_spill(tmp_path: Path) -> None:
    answer = check(tmp_path, f"touch \"${{@: -1}}\"; cat <<'END'\n{REPORT.format(stores=12)}END", "sort.cu")
    assert "sort.cu sm_90: 2 kernels, at most 128 registers" in answer.stdout


def test_an_empty_folder_is_no_success(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, str(TOOL), "--sources", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert "no .cu files" in answer.stderr
