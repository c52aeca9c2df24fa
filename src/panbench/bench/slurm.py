"""Batch scripts for SLURM: one job whose nodes form a Ray cluster for as long as a plan runs."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from panbench.errors import UserError

_SCRIPT = r"""#!/bin/bash
{directives}

# Runs a plan on every node of this job: Ray's own launcher starts Ray on each, the plan on the first, and stops both at
# the end. Submit it again to continue: finished cells are not run again.

set -euo pipefail

export PATH={path}:"$PATH"
export PLAN={plan}
export NODES={nodes} CPUS={cpus} GPUS={gpus}

# The first node. If its name leads to a loopback address there, give one that the others reach in RAY_HEAD.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export ADDRESS="${{RAY_HEAD:-${{hosts[0]}}}}:$((20000 + SLURM_JOB_ID % 10000))"

# Ray is open to whoever reaches its ports: this token closes it to all but this job.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
export RAY_AUTH_TOKEN
export RAY_TMPDIR="/tmp/ray-$UID" # /tmp/ray may be another user's
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
export RAY_memory_monitor_refresh_ms=0 # it would kill Ray's worker and not the process that takes the memory

# A node that is lost does not end the job: its cells run again on the others.
srun --no-kill --kill-on-bad-exit=0 --wait=0 bash -c '
    set -euo pipefail
    mkdir -p "$RAY_TMPDIR"
    options=(--num-cpus="$CPUS" --num-gpus="$GPUS" --disable-usage-stats)
    if ((GPUS > 0)); then
        gb=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits |
            awk -v gpus="$GPUS" "NR <= gpus {{ sum += int(\$1 / 1024) }} END {{ print sum }}")
        options+=(--resources="{{\"gpu_memory_gb\": $gb}}")
    fi
    exec ray symmetric-run --address "$ADDRESS" --min-nodes "$NODES" "${{options[@]}}" -- {command}
'
"""


def script(
    plan_path: Path,
    *,
    nodes: int = 1,
    gpus_per_node: int = 0,
    cpus_per_node: int = 8,
    time: str = "24:00:00",
    partition: str | None = None,
    options: Sequence[str] = (),
) -> str:
    """The text of a batch script that runs a plan with the engine ray.

    Args:
        plan_path: the plan; on storage that the nodes share.
        nodes: machines. The job has them to itself, since Ray's launcher stops every Ray of the user in the end.
        gpus_per_node, cpus_per_node: of each.
        time: limit, in SLURM's form. The cells that run then are told two minutes before.
        partition: where to submit to; None leaves it to the site.
        options: further ones for ``panbench bench``.

    Raises:
        UserError: a value that SLURM would not take.
    """
    if nodes < 1 or cpus_per_node < 1 or gpus_per_node < 0:
        raise UserError("a batch script needs at least 1 node with 1 core, and no negative number of GPUs")
    if not re.fullmatch(r"\d+(-\d+)?(:\d+){0,2}", time):
        raise UserError(f"{time!r} is not a time that SLURM knows: give minutes, HH:MM:SS or D-HH:MM:SS")
    if partition is not None and not re.fullmatch(r"[\w.,-]+", partition):
        raise UserError(f"{partition!r} is not the name of a partition")
    directives = {
        "job-name": re.sub(r"[^\w.-]", "_", f"panbench-{plan_path.stem}"),
        "nodes": nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cpus_per_node,
        **({"gpus-per-node": gpus_per_node} if gpus_per_node else {}),
        "time": time,
        **({"partition": partition} if partition else {}),
        "output": "%x-%j.log",
        "open-mode": "append",
        "signal": "TERM@120",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in directives.items()]
    lines += [f"#SBATCH --{flag}" for flag in ("exclusive", "no-kill", "requeue")]
    bench = ["panbench", "bench", "--engine", "ray", "--address", "auto", *options]
    return _SCRIPT.format(
        directives="\n".join(lines),
        path=shlex.quote(str(Path(sys.executable).parent)),
        plan=shlex.quote(str(plan_path.absolute())),
        nodes=nodes,
        cpus=cpus_per_node,
        gpus=gpus_per_node,
        # Inside single quotes.
        command=(shlex.join(bench) + ' "$PLAN"').replace("'", r"'\''"),
    )
