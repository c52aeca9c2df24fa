from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from panbench.bench.engine import PYTHON, Engine, Outcome, Resources, Task
from panbench.bench.local import LocalEngine
from panbench.bench.ray import RayEngine
from panbench.errors import UserError

slow = pytest.mark.slow

# Tells that it runs ("<" and the daemon of Ray's node it runs on), works a while, tells that it is done.
TELLING = (
    "import os, sys, time\n"
    "def tell(what):\n"
    "    with open(sys.argv[1] + '.told', 'a') as f: f.write(what)\n"
    "tell('<'); open(sys.argv[1] + '.node', 'w').write(os.environ.get('RAY_RAYLET_PID', ''))\n"
    "open(sys.argv[1] + '.parent', 'w').write(str(os.getppid()))\n"
    "time.sleep(float(sys.argv[2])); tell('>')"
)


def task(folder: Path, key: str, program: str, *arguments: str, **other: Any) -> Task:
    command = (PYTHON, "-c", program, *arguments)
    return Task(key, (command,), folder / "logs" / f"{key}.log", folder / "locks" / key, folder, **other)


def telling(folder: Path, key: str, seconds: float, **other: Any) -> Task:
    return task(folder, key, TELLING, key, str(seconds), **other)


def run_all(engine: Engine, tasks: list[Task], started: list[str] | None = None) -> dict[str, Outcome]:
    told = [] if started is None else started
    return {outcome.key: outcome for outcome in engine.run(tasks, lambda job: told.append(job.key))}


def wait_for(path: Path, seconds: float = 30) -> str:
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"{path} was never written"
        time.sleep(0.02)
    return path.read_text()


def is_free(lock: Path) -> bool:
    with lock.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class Nodes:
    """A cluster of Ray on this machine: every node has its own daemon and workers."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args=self._node())
        self.address: str = self._cluster.address

    @staticmethod
    def _node(**resources: float) -> dict[str, Any]:
        return {
            "num_cpus": 1,
            "include_dashboard": False,
            "node_ip_address": "127.0.0.1",
            "object_store_memory": 80 * 2**20,
            "resources": resources,
        }

    def add(self, **resources: float) -> Any:
        return self._cluster.add_node(**self._node(**resources))

    def lose(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """One node with one core; a test adds others and takes them away again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # stay on the loopback interface
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        cluster = Nodes()
        yield cluster
        cluster.close()


@pytest.fixture
def second(nodes: Nodes) -> Iterator[Any]:
    """A second node, with 24 GB of GPU memory to declare."""
    import ray

    node = nodes.add(gpu_memory_gb=24)
    yield node
    if node.any_processes_alive():
        nodes.lose(node)
    assert not ray.is_initialized()


@slow
def test_two_nodes_give_the_outcomes_of_the_local_engine(nodes: Nodes, second: Any, tmp_path: Path) -> None:
    killed_once = (
        "import os, pathlib, signal\n"
        "first = not pathlib.Path('tried').exists(); pathlib.Path('tried').write_text('x')\n"
        "if first: os.kill(os.getpid(), signal.SIGKILL)"
    )

    def tasks(folder: Path) -> list[Task]:
        folder.mkdir()
        return [
            *(telling(folder, f"t{i}", 0.5) for i in range(6)),
            task(folder, "killed once", killed_once),
            task(folder, "killed always", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
            task(folder, "fails", "import sys; print('error: no such scene: give another'); sys.exit(2)"),
            Task("missing", (("no-such-program",),), folder / "log", folder / "lock", folder),
        ]

    def facts(outcomes: dict[str, Outcome]) -> dict[str, tuple[object, ...]]:
        return {key: (o.status, o.host, o.attempts, o.error) for key, o in outcomes.items()}

    started: list[str] = []
    there = run_all(RayEngine(nodes.address), tasks(tmp_path / "ray"), started)
    here = run_all(LocalEngine(2), tasks(tmp_path / "local"))
    assert facts(there) == facts(here)
    assert here["killed once"].attempts == 2
    assert sorted(started) == sorted(here), "every task is told of once"
    used = {path.read_text() for path in (tmp_path / "ray").glob("*.node")}
    assert len(used) == 2, "both nodes had work"
    assert all(abs(there[f"t{i}"].seconds - here[f"t{i}"].seconds) < 0.5 for i in range(6))


@slow
def test_a_lost_node_loses_no_task(nodes: Nodes, second: Any, tmp_path: Path) -> None:
    tasks = [telling(tmp_path, f"t{i}", 2) for i in range(4)]
    outcomes: dict[str, Outcome] = {}
    thread = threading.Thread(target=lambda: outcomes.update(run_all(RayEngine(nodes.address), tasks)))
    thread.start()
    raylet = str(second.all_processes["raylet"][0].process.pid)
    end = time.monotonic() + 30
    while not (on_it := [path.stem for path in tmp_path.glob("*.node") if path.read_text() == raylet]):
        assert time.monotonic() < end
        time.sleep(0.02)
    nodes.lose(second)
    thread.join(60)
    assert {key: o.status for key, o in outcomes.items()} == {f"t{i}": 0 for i in range(4)}
    assert {key for key, o in outcomes.items() if o.attempts == 2} == set(on_it)
    told = {key: (tmp_path / f"{key}.told").read_text() for key in outcomes}
    # A task never ran twice at a time: what the lost node left behind ended before the second try began.
    assert all("<<" not in text or text == "<<>" for text in told.values()), told
    assert all(text.endswith(">") for text in told.values())


@slow
def test_a_killed_worker_loses_no_task(nodes: Nodes, tmp_path: Path) -> None:
    outcomes: dict[str, Outcome] = {}
    thread = threading.Thread(
        target=lambda: outcomes.update(run_all(RayEngine(nodes.address), [telling(tmp_path, "a", 2)]))
    )
    thread.start()
    os.kill(int(wait_for(tmp_path / "a.parent")), signal.SIGKILL)
    thread.join(60)
    assert (outcomes["a"].status, outcomes["a"].attempts) == (0, 2)
    assert (tmp_path / "a.told").read_text() in ("<><>", "<<>")


@slow
def test_a_worker_that_is_always_killed_is_given_up(nodes: Nodes, tmp_path: Path) -> None:
    program = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    outcome = run_all(RayEngine(nodes.address, retries=1), [task(tmp_path, "a", program)])["a"]
    assert (outcome.status, outcome.attempts) == (-signal.SIGKILL, 2)
    assert outcome.error.startswith("worker lost: ")


@slow
def test_a_killed_driver_is_started_again(nodes: Nodes, tmp_path: Path) -> None:
    driver = (
        "import sys; from pathlib import Path; from panbench.bench.engine import *; "
        "from panbench.bench.ray import RayEngine\n"
        "here = Path.cwd()\n"
        f"jobs = [Task(k, (('{{python}}', '-c', {TELLING!r}, k, '3'),), here / 'logs' / k, here / 'locks' / k, here)"
        " for k in 'ab']\n"
        "list(RayEngine(sys.argv[1]).run(jobs, lambda _: None))"
    )
    process = subprocess.Popen([sys.executable, "-c", driver, nodes.address], cwd=tmp_path)
    wait_for(tmp_path / "a.told")
    process.kill()
    process.wait()
    jobs = [Task(k, ((PYTHON, "-c", TELLING, k, "1"),), tmp_path / k, tmp_path / "locks" / k, tmp_path) for k in "ab"]
    outcomes = run_all(RayEngine(nodes.address), jobs)
    assert {key: o.status for key, o in outcomes.items()} == {"a": 0, "b": 0}
    assert (tmp_path / "a.told").read_text() in ("<><>", "<<>")
    assert (tmp_path / "b.told").read_text() == "<>", "what had not begun went with the driver"


@slow
def test_stop_ends_the_whole_group_and_starts_nothing_more(nodes: Nodes, tmp_path: Path) -> None:
    program = (
        "import signal, subprocess, sys, time\n"
        "def slowly(*_):\n"
        "    time.sleep(1.5); open('tidied', 'w').write('x'); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, slowly)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open('child', 'w').write(str(child.pid)); time.sleep(60)"
    )
    engine = RayEngine(nodes.address)
    jobs = [task(tmp_path, "long", program), task(tmp_path, "never", "open('never', 'w')")]
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.extend(engine.run(jobs, lambda _: None)))
    thread.start()
    child = int(wait_for(tmp_path / "child"))
    engine.stop()
    thread.join(30)
    assert [(o.key, o.error) for o in outcomes] == [("long", "stopped")]
    assert outcomes[0].status != 0
    assert (tmp_path / "tidied").exists(), "the command was given the time to end in good order"
    assert not Path(f"/proc/{child}").exists()
    assert is_free(jobs[0].lock)
    assert not (tmp_path / "never").exists()


@slow
def test_a_run_that_is_left_early_leaves_nothing_running(nodes: Nodes, tmp_path: Path) -> None:
    jobs = [task(tmp_path, "short", "pass"), telling(tmp_path, "long", 60)]
    outcomes = RayEngine(nodes.address).run(jobs, lambda _: None)
    assert next(outcomes).key == "short"
    wait_for(tmp_path / "long.told")
    outcomes.close()  # type: ignore[attr-defined]
    assert is_free(jobs[1].lock)
    assert (tmp_path / "long.told").read_text() == "<"


@slow
def test_tasks_go_where_the_gpu_memory_is(nodes: Nodes, second: Any, tmp_path: Path) -> None:
    big = [telling(tmp_path, f"big{i}", 0.3, resources=Resources(0.1, 0, 10)) for i in range(4)]
    none_has_it = task(tmp_path, "huge", "pass", resources=Resources(1, 0, 80))
    outcomes = run_all(RayEngine(nodes.address, patience=1), [*big, none_has_it])
    raylet = str(second.all_processes["raylet"][0].process.pid)
    assert {(tmp_path / f"big{i}.node").read_text() for i in range(4)} == {raylet}
    assert all(outcomes[job.key].status == 0 for job in big)
    assert (outcomes["huge"].status, outcomes["huge"].error) == (
        127,
        "no node of the Ray cluster is large enough (CPU 1, gpu_memory_gb 80): ask for less or add a node",
    )


@slow
def test_a_log_that_cannot_be_written_is_an_error_of_the_run(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="logs"):
        run_all(RayEngine(nodes.address), [task(tmp_path, "a", "pass")])


@slow
def test_without_an_address_ray_starts_here_closed_to_others(tmp_path: Path) -> None:
    """In a process of its own: what decides is read when Ray is imported."""
    program = (
        "import signal, sys; from pathlib import Path; from panbench.bench.engine import *; "
        "from panbench.bench.ray import RayEngine\n"
        "here = Path.cwd(); job = Task('a', (('true',),), here / 'log', here / 'lock', here)\n"
        "def look(_):\n"
        "    import ray; print([node['NodeManagerAddress'] for node in ray.nodes()])\n"
        "mine = lambda *_: None; signal.signal(signal.SIGTERM, mine)\n"
        "print([o.status for o in RayEngine().run([job], look)], signal.getsignal(signal.SIGTERM) is mine)\n"
        "import os; print(os.environ['RAY_AUTH_MODE'], os.environ['RAY_USAGE_STATS_ENABLED'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert out.stdout.splitlines() == ["['127.0.0.1']", "[0] True", "token 0"], out.stderr


@slow
def test_no_cluster_at_the_address_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=f"Ray at {address}: .*ray start --head") as problem:
        run_all(RayEngine(address), [task(tmp_path, "a", "pass")])
    assert "\n" not in str(problem.value)


def test_ray_client_is_refused() -> None:
    with pytest.raises(UserError, match="ray://head:10001: not supported: start on a node of the cluster"):
        RayEngine("ray://head:10001")


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'panbench\[ray\]'"):
        run_all(RayEngine("auto"), [task(tmp_path, "a", "pass")])
