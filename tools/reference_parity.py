"""Train every base twice, with the compiled CPU operators and with the pure-torch reference, and compare test views.

python tools/reference_parity.py                  # all bases: some minutes each, nearly all of them the reference
python tools/reference_parity.py --bases ligs 3dgs --steps 200

The reference is the specification of every operator, so a base that is trained with the compiled operators must render
test views as well. Both trainings are `panbench fit` with one configuration and seed, on the tiny built-in room; only
the back end differs. Runs lie in the folder of --runs and go on where they were stopped; a finished pair is not run
again. Writes docs/reference_parity.json, which `tools/results.py` puts into docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmark.machine import facts
from benchmark.report import table
from panbench.errors import UserError
from panbench.protocol.results import SceneResult
from panbench.resources import asset
from panbench.training.files import write_text
from panbench.training.run_dir import RunDirectory

BACKENDS = ("cpu", "reference")
BASES = ("3dgs", "2dgs", "surfels", "ligs")
BOUND = 0.5  # dB that the compiled operators may lose


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    out.add_argument("--steps", type=int, default=100)
    out.add_argument("--size", type=int, nargs=2, default=(64, 48), metavar=("WIDTH", "HEIGHT"))
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--runs", type=Path, default=Path("runs/reference_parity"), help="folder of the trainings")
    out.add_argument("--out", type=Path, default=Path("docs/reference_parity.json"), help="file of all results")
    return out


def trained(base: str, backend: str, arguments: argparse.Namespace) -> SceneResult:
    """Train (or find the finished training) and return its result.

    Raises:
        UserError: the training failed.
    """
    receipt = arguments.runs / f"{base}-{backend}.json"
    receipt.parent.mkdir(parents=True, exist_ok=True)
    width, height = arguments.size
    command = [
        sys.executable, "-m", "panbench", "fit",
        "--config", str(asset("configs") / f"{base}_scannet.yaml"),
        "--data.room_size=tiny",
        f"--data.image_size=[{width},{height}]",
        f"--trainer.max_steps={arguments.steps}",
        "--trainer.accelerator=cpu",
        f"--seed_everything={arguments.seed}",
        f"--run.root={arguments.runs / backend}",
        f"--run.receipt={receipt}",
    ]  # fmt: skip
    # The table of each run would bury what this program has to say; progress goes to stderr.
    done = subprocess.run(command, env=os.environ | {"PANBENCH_BACKEND": backend}, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"{base} with the {backend} back end: panbench fit ended with status {done.returncode}")
    return SceneResult.load(RunDirectory(Path(json.loads(receipt.read_text())["run"])).result)


def compare(base: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a base with both back ends: PSNR, depth error and number of Gaussians of each."""
    out: dict[str, Any] = {"base": base}
    for backend in BACKENDS:
        result = trained(base, backend, arguments)
        values = {key: result.metrics.get(key) for key in ("PSNR", "SSIM", "depth_l1")}
        out[backend] = values | {"gaussians": result.cost.get("gaussians")}
    return out


def markdown(results: Mapping[str, Any]) -> str:
    """A table of all bases that were compared."""
    s, m = results["settings"], results["machine"]
    rows: list[list[str]] = []
    for pair in results["bases"].values():
        ours, reference = pair["cpu"], pair["reference"]
        change = ours["PSNR"] - reference["PSNR"]
        verdict = "within" if change >= -BOUND else "**missed**"
        numbers = [f"{v['PSNR']:.2f}" for v in (ours, reference)]
        depths = ["–" if v["depth_l1"] is None else f"{v['depth_l1']:.2f}" for v in (ours, reference)]
        rows.append([pair["base"], *numbers, f"{change:+.3f}", verdict, *depths])
    head = ["base", "PSNR, compiled", "PSNR, reference", "difference", f"≥ −{BOUND} dB", "depth, compiled", "reference"]
    return (
        f"Each base with the query head, trained twice for {s['steps']} steps on the tiny built-in room at "
        f"{s['size'][0]}x{s['size'][1]}, seed {s['seed']}: with the compiled operators and with the pure-torch "
        f"reference, which specifies them. dB of test views; depth error in cm. Commit {m['commit']}.\n\n"
        + table(head, rows)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train, compare, save."""
    arguments = parser().parse_args(argv)
    console = Console()
    settings = {"steps": arguments.steps, "size": list(arguments.size), "seed": arguments.seed}
    results: dict[str, Any] = {"machine": facts(), "settings": settings, "bases": {}}
    if arguments.out.is_file():
        old: dict[str, Any] = json.loads(arguments.out.read_text())
        if old["settings"] == settings and old["machine"]["commit"] == results["machine"]["commit"]:
            results = old
    try:
        for number, base in enumerate(arguments.bases, start=1):
            if base not in results["bases"]:
                console.print(f"{number}/{len(arguments.bases)} {base}", highlight=False)
                results["bases"][base] = compare(base, arguments)
                write_text(arguments.out, json.dumps(results, indent=1) + "\n")
        console.print(markdown(results), highlight=False, soft_wrap=True)
    except UserError as error:
        console.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
