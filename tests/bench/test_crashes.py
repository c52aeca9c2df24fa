"""A bench that is killed at any point loses no finished cell, and the same command runs exactly what is missing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from panbench.bench.runner import CellRecord
from panbench.protocol.store import ResultStore

pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.Popen[str]]


def ran(place: Path) -> Counter[str]:
    path = place / "ran"
    return Counter(path.read_text().split()) if path.exists() else Counter()


def records(place: Path) -> dict[str, CellRecord]:
    found = (CellRecord.model_validate_json(p.read_text()) for p in (place / "bench" / "p" / "cells").glob("*.json"))
    return {record.name: record for record in found}


def wait_until(true: Callable[[], object], process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < end
        time.sleep(0.02)


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=120)
    return out


def check_complete(place: Path) -> None:
    """All three cells are done, and the store holds a sound result of each."""
    assert {name: r.status for name, r in records(place).items()} == {f"program/room/s{i}": "done" for i in range(3)}
    store = ResultStore(place / "results")
    assert sorted(s.result.seed or 0 for s in store) == [0, 1, 2]
    assert list(store.faults()) == []


def test_a_killed_runner_loses_no_finished_cell(place: Path, start: Start) -> None:
    process = start(PROGRAM_SECONDS="8")
    wait_until(lambda: len(records(place)) == 1 and ran(place)["room/1"] == 1, process)
    process.kill()
    finish(process)
    assert list(records(place)) == ["program/room/s0"]
    again = start()
    out = finish(again)
    assert again.returncode == 0, out
    assert "still runs, left behind by an earlier start; waiting for it" in out
    check_complete(place)
    # The finished cell did not run again; the one that was cut off did; the last one ran once.
    assert (ran(place)["room/0"], ran(place)["room/2"]) == (1, 1)


def test_a_killed_cell_is_tried_again(place: Path, start: Start) -> None:
    process = start(PROGRAM_SECONDS="2")
    wait_until(lambda: ran(place)["room/0"] == 1, process)
    subprocess.run(["pkill", "-9", "-f", f"program.py room 0 {place}"], check=True)
    out = finish(process)
    assert process.returncode == 0, out
    check_complete(place)
    assert ran(place) == {"room/0": 2, "room/1": 1, "room/2": 1}
    assert records(place)["program/room/s0"].attempts == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_stop_ends_what_runs_and_the_same_command_continues(
    place: Path, start: Start, number: signal.Signals
) -> None:
    process = start(PROGRAM_SECONDS="30")
    wait_until(lambda: ran(place)["room/0"] == 1, process)
    process.send_signal(number)
    out = finish(process)
    assert process.returncode == 130, out
    assert "stopped: the same command continues" in out
    assert records(place) == {}
    assert finish(start()).count("done     program/room") == 3
    check_complete(place)


def test_a_cell_that_fails_does_not_stop_the_others(place: Path, start: Start) -> None:
    broken = "import sys\nif sys.argv[2] == '1': sys.exit('error: out of luck: try another seed')\n"
    program = (place / "program.py").read_text()
    (place / "program.py").write_text(broken + program)
    process = start()
    out = finish(process)
    assert process.returncode == 1
    assert "program/room/s1 failed (exit status 1: out of luck: try another seed)" in out
    assert {r.status for n, r in records(place).items() if n != "program/room/s1"} == {"done"}
    # Failed cells stay failed until they are asked for.
    (place / "program.py").write_text(program)
    assert "2 of 3 cells done, 1 failed" in finish(start())
    process = start("--retry-failed")
    out = finish(process)
    assert process.returncode == 0, out
    check_complete(place)
    assert ran(place) == {"room/0": 1, "room/1": 1, "room/2": 1}


def test_two_runners_do_not_run_one_plan(place: Path, start: Start) -> None:
    process = start(PROGRAM_SECONDS="4")
    wait_until(lambda: ran(place)["room/0"] == 1, process)
    second = start()
    out = finish(second)
    assert second.returncode == 2
    assert f"process {process.pid} runs this plan already" in out
    process.send_signal(signal.SIGINT)
    finish(process)


def mounts() -> bool:
    """True if this process may mount a small file system in a namespace of its own."""
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not mounts(), reason="needs unshare and the right to mount a tmpfs")
def test_a_full_disk_loses_no_finished_cell(place: Path) -> None:
    """On a file system of 2 MiB, of which each cell takes 700 KiB; then with room again, on the same files."""
    command = f"{sys.executable} -m panbench bench plan.yaml"
    script = (
        "set -u; mkdir small; mount -t tmpfs -o size=2m none small\n"
        "cp -a plan.yaml program.py template room small; cd small\n"
        f"BALLAST=700000 {command} > ../first.log 2>&1; echo $? > ../first\n"
        "cp -a bench results ../; ls bench/p/cells > ../after_first\n"
        f"mount -o remount,size=60m .; {command} > ../second.log 2>&1; echo $? > ../second\n"
        "cp -a ran bench results ..\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"}
    subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=place, env=environment, timeout=240, check=False)
    first = (place / "first.log").read_text()
    assert (place / "first").read_text() == "2\n", first
    assert "the disk is full" in first
    assert "Traceback" not in first
    kept = (place / "after_first").read_text().split()
    assert 1 <= len(kept) < 3, first
    assert (place / "second").read_text() == "0\n", (place / "second.log").read_text()
    check_complete(place)
    # What was done before the disk was full did not run again.
    assert ran(place)["room/0"] == 1
