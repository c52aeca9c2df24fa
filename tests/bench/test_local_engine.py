from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from panbench.bench.engine import PYTHON, Outcome, Task, run_task
from panbench.bench.local import LocalEngine


def task(folder: Path, key: str, *programs: str) -> Task:
    """A task of Python programs."""
    commands = tuple((PYTHON, "-c", program) for program in programs)
    return Task(key, commands, folder / "logs" / f"{key}.log", folder / "locks" / key, folder)


def run_all(engine: LocalEngine, *tasks: Task) -> dict[str, Outcome]:
    return {outcome.key: outcome for outcome in engine.run(tasks, lambda _: None)}


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def ends(pid: int, seconds: float = 20) -> bool:
    """Whether the process is gone soon: signals that were sent still have to reach it."""
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def wait_for(path: Path, seconds: float = 20) -> str:
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"{path} was never written"
        time.sleep(0.02)
    return path.read_text()


def test_a_task_runs_its_commands_in_order_and_keeps_what_they_write(tmp_path: Path) -> None:
    job = task(tmp_path, "a", "print('one')", "import sys; print('two', file=sys.stderr)")
    outcome = run_task(job)
    assert (outcome.status, outcome.error, outcome.attempts) == (0, "", 1)
    assert [line for line in job.log.read_text().splitlines() if not line.startswith("$")] == ["one", "two"]


def test_a_failure_ends_the_task_and_is_told_in_one_line(tmp_path: Path) -> None:
    failing = "import sys; print('error: no such scene: give another'); print('bye'); sys.exit(2)"
    job = task(tmp_path, "a", failing, "open('later', 'w')")
    outcome = run_task(job)
    assert outcome.status == 2
    assert outcome.error == "exit status 2: no such scene: give another"
    assert not (tmp_path / "later").exists()


def test_an_error_of_an_earlier_try_is_not_told_again(tmp_path: Path) -> None:
    run_task(task(tmp_path, "a", "import sys; print('error: first'); sys.exit(2)"))
    assert run_task(task(tmp_path, "a", "import sys; sys.exit(3)")).error == "exit status 3"


def test_a_program_that_is_not_there_is_an_outcome(tmp_path: Path) -> None:
    job = Task("a", (("no-such-program",),), tmp_path / "log", tmp_path / "lock", tmp_path)
    outcome = run_task(job)
    assert (outcome.status, outcome.error) == (127, "no-such-program cannot be started: No such file or directory")


def test_a_killed_process_is_tried_again_and_a_failed_one_is_not(tmp_path: Path) -> None:
    killed_once = (
        "import os, pathlib, signal\n"
        "first = not pathlib.Path('tried').exists(); pathlib.Path('tried').write_text('x')\n"
        "if first: os.kill(os.getpid(), signal.SIGKILL)"
    )
    always_killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    out = run_all(
        LocalEngine(2, retries=2),
        task(tmp_path, "once", killed_once),
        task(tmp_path, "always", always_killed),
        task(tmp_path, "fails", "raise SystemExit(1)"),
    )
    assert {key: (o.status, o.attempts) for key, o in out.items()} == {
        "once": (0, 2),
        "always": (-signal.SIGKILL, 3),
        "fails": (1, 1),
    }
    assert out["always"].error == "killed by signal 9"


def test_no_more_tasks_run_side_by_side_than_there_are_workers(tmp_path: Path) -> None:
    program = "import os, time; open(f'in-{os.getpid()}', 'w'); time.sleep(.3); os.remove(f'in-{os.getpid()}')"
    most = 0
    engine = LocalEngine(2)
    done = threading.Event()

    def look() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len(list(tmp_path.glob("in-*"))))
            time.sleep(0.01)

    thread = threading.Thread(target=look)
    thread.start()
    assert len(run_all(engine, *(task(tmp_path, f"t{i}", program) for i in range(5)))) == 5
    done.set()
    thread.join()
    assert most == 2


def test_stop_ends_the_whole_group_and_starts_nothing_more(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open('child', 'w').write(str(child.pid)); time.sleep(60)"
    )
    engine = LocalEngine(1)
    outcomes: list[Outcome] = []
    jobs = [task(tmp_path, "long", program), task(tmp_path, "never", "open('never', 'w')")]
    thread = threading.Thread(target=lambda: outcomes.extend(engine.run(jobs, lambda _: None)))
    thread.start()
    child = int(wait_for(tmp_path / "child"))
    engine.stop()
    thread.join(15)
    assert [(o.key, o.status, o.error) for o in outcomes] == [("long", -signal.SIGTERM, "stopped")]
    assert ends(child)
    assert not (tmp_path / "never").exists()


def test_what_a_killed_runner_left_running_is_waited_for(tmp_path: Path) -> None:
    """The orphan holds the lock of its task until it ends; a second start of the task comes after it."""
    program = "import time; f = open('order', 'a'); f.write('<'); f.flush(); time.sleep(1.5); f.write('>')"
    runner = (
        "import pathlib, sys; from panbench.bench.engine import *\n"
        "here = pathlib.Path()\n"
        f"run_task(Task('a', (('{{python}}', '-c', {program!r}),), here / 'log', here / 'lock', here))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", runner], cwd=tmp_path, env=environment)
    wait_for(tmp_path / "order")
    process.kill()
    process.wait()
    again = Task("a", ((PYTHON, "-c", program),), tmp_path / "log", tmp_path / "lock", tmp_path)
    assert run_task(again).status == 0
    assert (tmp_path / "order").read_text() == "<><>"


def test_the_lock_is_free_once_the_task_ended(tmp_path: Path) -> None:
    job = task(tmp_path, "a", "pass")
    run_task(job)
    with job.lock.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_log_that_cannot_be_written_is_an_error_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="logs"):
        run_all(LocalEngine(1), task(tmp_path, "a", "pass"))
