from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from panbench.bench.slurm import script
from panbench.errors import UserError

ISOLATED = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount", "--mount-proc"]


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def run(text: str, tools: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script where the programs of ``tools`` go before those of the machine."""
    # The script puts its own interpreter's folder first.
    text = text.replace(':"$PATH"', f':"$PATH"\nexport PATH={tools}:"$PATH"', 1)
    return subprocess.run(
        ["bash", "-c", text],
        env={**os.environ, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "123456", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("gpus", [0, 4])
@pytest.mark.parametrize("name", ["plain.yaml", 'it\'s a "plan" $HOME `x`.yaml'])
def test_the_script_is_bash(tmp_path: Path, gpus: int, name: str) -> None:
    text = script(tmp_path / name, nodes=2, gpus_per_node=gpus, options=("--only", "it's; rm -rf *"))
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_directives_ask_for_what_was_given() -> None:
    text = script(Path("a b.yaml"), nodes=3, gpus_per_node=4, cpus_per_node=32, time="1-00:00:00", partition="gpu")
    asked = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"job-name=panbench-a_b", "nodes=3", "ntasks-per-node=1", "cpus-per-task=32", "gpus-per-node=4"} <= set(
        asked
    )
    assert {"time=1-00:00:00", "partition=gpu", "exclusive", "no-kill", "requeue"} <= set(asked)
    assert text.startswith("#!/bin/bash\n#SBATCH"), "directives after the first command are not read"
    plain = script(Path("a.yaml"))
    assert "#SBATCH --gpus" not in plain
    assert "#SBATCH --partition" not in plain


def test_the_launcher_is_called_once_a_node_with_what_the_node_has(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    program(tools, "scontrol", "printf 'n1\\nn2\\n'")
    program(tools, "srun", 'while [[ $1 == --* ]]; do shift; done; "$@"; "$@"')
    program(tools, "nvidia-smi", "printf '24564\\n24564\\n81559\\n'")
    program(
        tools,
        "ray",
        f'printf "%s|" "$@" >> {tmp_path}/calls; echo "$RAY_AUTH_MODE ${{#RAY_AUTH_TOKEN}}" >> {tmp_path}/calls',
    )
    plan = tmp_path / 'it\'s "my" $plan.yaml'
    text = script(plan, nodes=2, gpus_per_node=2, cpus_per_node=16, options=("--only", "it's *"))
    text = text.replace("/tmp/ray-$UID", str(tmp_path / "ray"))
    out = run(text, tools)
    assert (out.returncode, out.stderr) == (0, "")
    call = [
        *("symmetric-run", "--address", "n1:23456", "--min-nodes", "2", "--num-cpus=16", "--num-gpus=2"),
        *("--disable-usage-stats", '--resources={"gpu_memory_gb": 46}', "--"),
        *("panbench", "bench", "--engine", "ray", "--address", "auto", "--only", "it's *", str(plan), "token 64"),
    ]
    assert (tmp_path / "calls").read_text().splitlines() == ["|".join(call)] * 2


@pytest.mark.slow
def test_the_real_launcher_runs_the_plan_on_a_cluster_of_one_node(tmp_path: Path) -> None:
    """Only SLURM's own programs are stand-ins. The launcher stops every Ray it finds, hence the namespace."""
    if subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no new process namespaces here")
    tools = tmp_path / "tools"
    program(tools, "scontrol", "echo 127.0.0.1")
    program(tools, "srun", 'while [[ $1 == --* ]]; do shift; done; "$@"')
    engine = (
        "import sys; from pathlib import Path; from panbench.bench.engine import *; "
        "from panbench.bench.ray import RayEngine\n"
        "here = Path.cwd(); job = Task('a', (('true',),), here / 'log', here / 'lock', here)\n"
        "print(sys.argv[1:], [o.status for o in RayEngine('auto').run([job], lambda _: None)])"
    )
    (tmp_path / "engine.py").write_text(engine)
    program(tools, "panbench", f'cd {tmp_path} && {sys.executable} engine.py "$@"')
    text = script(tmp_path / "plan.yaml", cpus_per_node=1)
    text = text.replace("exec ray ", "export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0\n    exec ray ")  # loopback only
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    kept |= {"SLURM_JOB_NODELIST": "n1", "SLURM_JOB_ID": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # Names of sockets must be short.
    with TemporaryDirectory(prefix="r", dir="/tmp") as short:
        text = text.replace("/tmp/ray-$UID", short)
        (tmp_path / "job.sh").write_text(text.replace(':"$PATH"', f':"$PATH"\nexport PATH={tools}:"$PATH"', 1))
        command = [*ISOLATED, "bash", str(tmp_path / "job.sh")]
        out = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=200, check=False)
    assert f"['bench', '--engine', 'ray', '--address', 'auto', '{tmp_path}/plan.yaml'] [0]" in out.stdout, out
    assert out.returncode == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"time": "soon"}, "'soon' is not a time that SLURM knows: give minutes, HH:MM:SS or D-HH:MM:SS"),
        ({"partition": "a\n#SBATCH --x"}, "is not the name of a partition"),
        ({"nodes": 0}, "at least 1 node"),
    ],
)
def test_what_slurm_would_not_take_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        script(Path("a.yaml"), **values)  # type: ignore[arg-type]
