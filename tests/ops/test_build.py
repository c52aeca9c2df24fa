"""Compiling the operators, and what happens where that is not possible."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from panbench.errors import UserError
from panbench.ops import backend, build


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a process that has not chosen a back end yet, with an empty cache."""
    monkeypatch.setattr(backend, "_state", backend._State())
    monkeypatch.setenv("PANBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PANBENCH_BACKEND", raising=False)
    monkeypatch.delenv("CXX", raising=False)


def fake_compiler(folder: Path, script: str) -> str:
    """A program that answers --version and otherwise does as the script says."""
    path = folder / "fake-c++"
    path.write_text(f'#!/bin/sh\ncase "$*" in *--version*) echo "fake 1.0"; exit 0;; esac\n{script}\n')
    path.chmod(0o755)
    return str(path)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def test_a_compiler_that_does_not_exist_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(build.BuildError, match=r"\$CXX=/nowhere/c\+\+ is not a program; install g\+\+") as error:
        build.build()
    assert isinstance(error.value, UserError)
    one_line(error.value)


def test_a_machine_without_any_compiler_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler is installed; install g\+\+") as error:
        build.build()
    one_line(error.value)


def test_auto_falls_back_to_the_reference_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with caplog.at_level(logging.WARNING):
        assert backend.choose() == "reference"
    (record,) = caplog.records
    assert "reference (slow)" in record.message
    assert "/nowhere/c++ is not a program" in record.message
    assert "/nowhere/c++ is not a program" in backend.reason()
    assert ("cpu", False) in [line[:2] for line in backend.describe()]


def test_a_back_end_that_was_asked_for_does_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    for ask in (lambda: backend.choose("cpu"), lambda: backend.resolve("cpu")):
        with pytest.raises(build.BuildError, match="is not a program"):
            ask()


def test_cuda_without_a_gpu_is_one_line_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(build.BuildError, match="is built without CUDA; install a CUDA build of it") as error:
        backend.choose("cuda")
    one_line(error.value)
    monkeypatch.setattr(backend, "_state", backend._State())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(build.BuildError, match="finds no GPU; nvidia-smi says whether the driver does") as error:
        backend.resolve("cuda")
    one_line(error.value)


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one GPU of compute capability 9.0."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))


@pytest.mark.usefixtures("_gpu")
def test_a_gpu_without_nvcc_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(build.BuildError, match=r"nvcc is neither on PATH nor in \$CUDA_HOME; install") as error:
        backend.load_cuda()
    one_line(error.value)
    with caplog.at_level(logging.WARNING):
        assert backend.resolve(device="cuda") == "reference"
    assert "the CUDA operators do not work here: nvcc is neither" in caplog.text
    assert backend.resolve(device="cuda") == "reference"
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("_gpu")
def test_kernels_are_compiled_for_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "nvcc"
    script.write_text(f'#!/bin/sh\necho "$*" >> "{tmp_path}/calls"\necho "a.cu(3): error: no such thing"\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(build.BuildError, match=r"CUDA operators for sm_90 failed: a\.cu\(3\): error: no such thing"):
        backend.load_cuda()
    assert "arch=compute_90,code=sm_90" in (tmp_path / "calls").read_text()


def test_a_back_end_that_was_asked_for_takes_no_tensor_of_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_state", backend._State(loaded=True))
    backend.choose("cpu")
    with pytest.raises(UserError, match="the cpu back end was asked for, but the tensors are on cuda; choose auto"):
        backend.resolve(device="cuda")


def test_auto_follows_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_state", backend._State(loaded=True, cuda_loaded=True))
    assert backend.resolve(device="cpu") == "cpu"
    assert backend.resolve(device="cuda") == "cuda"
    assert backend.resolve() == "cuda"
    assert backend.reason() == "auto: the CUDA operators are compiled and loaded"
    assert backend.resolve(device="cpu") == "cpu"
    assert backend.resolve(device="mps") == "reference"


def test_an_unknown_back_end_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown back end 'gpu'; there are auto, reference, cpu"):
        backend.choose("gpu")


def test_a_compile_error_is_one_line_and_is_not_tried_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    script = f'echo x >> "{calls}"; echo "blend.cpp:7: error: no such thing" >&2; exit 1'
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    with pytest.raises(build.BuildError, match=r"failed: blend\.cpp:7: error: no such thing .*build\.log") as first:
        backend.load_cpu()
    log = Path(one_line(first.value).rpartition("whole log: ")[2].rstrip(")"))
    assert "no such thing" in log.read_text()
    tried = calls.read_text()
    with pytest.raises(build.BuildError) as second:
        backend.load_cpu()
    assert second.value is first.value
    assert calls.read_text() == tried


def test_a_library_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "panbench_cpu.so"
    broken.write_text("no library")
    monkeypatch.setattr(build, "build", lambda: broken)
    with pytest.raises(build.BuildError, match="cannot load the operators") as error:
        backend.load_cpu()
    one_line(error.value)


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("PANBENCH_CACHE", str(tmp_path / "taken"))
    with pytest.raises(build.BuildError, match="set PANBENCH_CACHE to a folder that can be written") as error:
        build.build()
    one_line(error.value)


# Writes the object and dependency files that ninja asks for, and the library.
WORKING = 'while [ $# -gt 0 ]; do case "$1" in -o|-MF) shift; : > "$1";; esac; shift; done'


def test_what_was_built_once_is_not_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, f'echo x >> "{tmp_path}/calls"; {WORKING}'))
    library = build.build()
    calls = (tmp_path / "calls").read_text()
    assert build.build() == library
    assert (tmp_path / "calls").read_text() == calls


def test_where_no_spinner_is_seen_a_line_says_that_compiling_has_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, WORKING))
    with caplog.at_level(logging.INFO):
        build.build()
    first, last = (record.message for record in caplog.records)
    assert first == "compiling the CPU operators with fake 1.0 (once, about a minute)"
    assert last.startswith("compiled the CPU operators into ")


def test_other_sources_are_built_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, WORKING))
    first = build.build()
    copy = tmp_path / "csrc"
    (copy / "cpu").mkdir(parents=True)
    for path in build.asset("csrc").rglob("*"):
        if path.is_file() and path.parent.name in ("csrc", "cpu"):
            (copy / path.relative_to(build.asset("csrc"))).write_bytes(path.read_bytes())
    (copy / "ops.cpp").write_text((copy / "ops.cpp").read_text() + "// changed\n")
    monkeypatch.setattr(build, "asset", lambda _: copy)
    assert build.build().parent != first.parent


def test_the_lock_of_a_killed_build_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, WORKING))
    library = build.build()
    library.unlink()
    lock = library.parent / "lock"
    holder = (
        "import fcntl, sys, time; fcntl.flock(f := open(sys.argv[1], 'w'), 2); "
        "print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", holder, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with lock.open() as handle, pytest.raises(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.kill()
    process.wait()
    process.stdout.close()
    assert lock.exists()
    started = time.monotonic()
    assert build.build() == library
    assert time.monotonic() - started < 20


def test_two_processes_build_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = f'case "$*" in *-shared*) echo x >> "{tmp_path}/links"; sleep 1;; esac; {WORKING}'
    environment = os.environ | {
        "CXX": fake_compiler(tmp_path, script),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    command = [sys.executable, "-c", "from panbench.ops.build import build; print(build())"]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in "12"
    ]
    libraries = {process.communicate(timeout=120)[0] for process in processes}
    assert len(libraries) == 1
    assert (tmp_path / "links").read_text() == "x\n"
