"""Measure the rasterizer against other rasterizers and against this machine; write docs/performance.md.

python tools/bench_rasterizer.py                                    # everything: about an hour on two cores
python tools/bench_rasterizer.py --quick                            # every target: about ten minutes
python tools/bench_rasterizer.py --gaussians 10k 50k --sizes 320x240 --channels 3 128 --rounds 3
python tools/bench_rasterizer.py --resume                           # go on after an interruption
python tools/bench_rasterizer.py --memory                           # add the memory curve: some minutes
python tools/bench_rasterizer.py --opensplat ../OpenSplat           # with a checkout of OpenSplat as another peer
python tools/bench_rasterizer.py --page-only                        # write the page from the file again

Every case is saved as soon as it is measured. Close other programs first: a sample during which they used more than a
tenth of a core is thrown away where it can be, and marked where it cannot.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from benchmark import report
from benchmark.machine import (
    Ceilings,
    available_memory,
    facts,
    peak_memory,
    peak_memory_reset,
)
from benchmark.results import CaseResult, Results
from benchmark.timing import Plan, measure
from benchmark.views import PEERS, SLOW, Case, PeerName, QueryView, Views, field_of, peer_memory
from benchmark.workload import CAMERAS, NEAR, cameras, furnished_room
from panbench import ops
from panbench.errors import UserError
from panbench.ops.backend import load_cpu
from panbench.threads import brief_waits
from panbench.training.files import write_text
from panbench.training.memory import keep_freed_memory
from peers.opensplat import commit

MARKER = "bench_rasterizer"
QUICK: dict[str, Any] = {
    "gaussians": [50_000, 200_000],
    "sizes": [(320, 240), (640, 480)],
    "channels": [3, 27, 32, 128],
    "views": 1,
    "rounds": 3,
    "max_rounds": 4,
    "seconds": 0.1,
    "limit": 8.0,
}
"""Defaults under ``--quick``: the cases that some target is about, measured briefly."""


def count(text: str) -> int:
    """10k, 1M or a plain number."""
    units = {"k": 1_000, "M": 1_000_000}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        return int(number) * unit
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of Gaussians; give 10k, 1M or 5000") from None


def size(text: str) -> tuple[int, int]:
    """320x240."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no image size; give 320x240")
    return int(width), int(height)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--gaussians", type=count, nargs="+", default=[10_000, 50_000, 200_000, 1_000_000], metavar="N")
    out.add_argument("--sizes", type=size, nargs="+", default=[(320, 240), (640, 480)], metavar="WxH", help="images")
    out.add_argument("--channels", type=int, nargs="+", default=[3, 27, 32, 64, 128], metavar="C")
    out.add_argument("--kinds", nargs="+", choices=["ellipsoid", "disc"], default=["ellipsoid"], help="primitives")
    out.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="whom to compare with")
    out.add_argument(
        "--slow-peers",
        choices=["smallest", "all"],
        default="smallest",
        help="pure torch takes part where N and the image are smallest, or in all cases that fit into memory",
    )
    out.add_argument("--opensplat", type=Path, metavar="PATH", help="checkout of OpenSplat to compare with, at C = 3")
    out.add_argument("--views", type=int, choices=range(1, CAMERAS + 1), default=2, metavar="1-8", help="cameras")
    out.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of everyone (default: all cores)")
    out.add_argument("--rounds", type=int, default=5, help="clean samples wanted of everyone in a case")
    out.add_argument(
        "--max-rounds", type=int, default=None, help="turns at most on a busy machine (default: rounds + 3)"
    )
    out.add_argument("--seconds", type=float, default=0.25, help="length of a sample at least")
    out.add_argument(
        "--limit", type=float, default=30.0, help="seconds for one contestant in a case; one turn at least"
    )
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--quick", action="store_true", help="what the targets need, measured briefly; options still hold")
    out.add_argument("--memory", action="store_true", help="measure peak memory instead of time, at the first size")
    out.add_argument(
        "--queries", type=int, nargs="+", default=[16, 64, 256], metavar="C", help="channels of the memory curve"
    )
    out.add_argument("--resume", action="store_true", help="keep the cases that the file already has")
    out.add_argument("--page-only", action="store_true", help="measure nothing; write the page from the file")
    out.add_argument("--out", type=Path, default=Path("docs/performance.json"), help="file of all results")
    out.add_argument("--page", type=Path, default=Path("docs/performance.md"), help="page to write into")
    return out


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, those of the quick mode under what was given."""
    read = parser()
    arguments = read.parse_args(argv)
    if arguments.quick:
        read.set_defaults(**QUICK)
        arguments = read.parse_args(argv)
    return arguments


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the results say of the machine, of this process's allocator, and of OpenSplat."""
    # As in training, so that fresh pages are not what is timed; ours and the peers alike, since they share the process.
    kept = "kept for reuse (`mallopt`)" if keep_freed_memory() else "given back to the system"
    return facts() | {"freed_memory": kept, "opensplat": commit(arguments.opensplat) if arguments.opensplat else None}


def open_results(arguments: argparse.Namespace) -> Results:
    """The file's results where they are to be kept, else empty ones.

    Raises:
        UserError: the file was measured with other settings, or another commit or machine.
    """
    if arguments.page_only:
        return Results.load(arguments.out)
    names = ("views", "threads", "rounds", "seconds", "limit", "seed", "slow_peers")
    settings = {name: getattr(arguments, name) for name in names}
    new = Results(settings, machine(arguments))
    if not arguments.out.is_file() or not (arguments.resume or arguments.memory):
        return new
    old = Results.load(arguments.out)
    for name in ("processor", "commit", "torch", "freed_memory", "opensplat"):
        before = old.machine.get(name)
        if before != new.machine[name] and not (name == "opensplat" and arguments.memory):
            raise UserError(
                f"{arguments.out} was measured with {name.replace('_', ' ')} {before}, this is {new.machine[name]}; "
                "give another --out, or leave --resume out to start over"
            )
    changed = [name for name in settings if old.settings.get(name) != settings[name]]
    if changed and not arguments.memory:
        option = changed[0].replace("_", "-")
        raise UserError(f"{arguments.out} was measured with another --{option}; give the same, or another --out")
    return old


def cases(arguments: argparse.Namespace) -> list[Case]:
    """What to measure, cheap before dear."""
    return [
        Case(kind, n, width, height, channels)
        for n in sorted(arguments.gaussians)
        for width, height in arguments.sizes
        for kind in arguments.kinds
        for channels in sorted(arguments.channels)
    ]


def peers_of(case: Case, arguments: argparse.Namespace) -> list[PeerName]:
    """The peers of a case, the slow ones only where they are wanted."""
    smallest = case.count == min(arguments.gaussians) and case.width * case.height == min(
        w * h for w, h in arguments.sizes
    )
    slow = smallest or arguments.slow_peers == "all"
    return [peer for peer in arguments.peers if slow or peer not in SLOW]


def measure_case(case: Case, arguments: argparse.Namespace, ceilings: Ceilings, console: Console) -> CaseResult:
    """Time everyone on one case."""
    with console.status(f"{case.key}: preparing") as status:
        gaussians = furnished_room(case.count, arguments.seed)
        views = Views(case, gaussians, arguments.views, arguments.seed)
        work = views.work()
        peers = peers_of(case, arguments)
        field = field_of(views, work, arguments.threads, peers, ceilings, arguments.opensplat)
        rounds = arguments.max_rounds or arguments.rounds + 3
        plan = Plan(arguments.rounds, rounds, arguments.seconds, arguments.limit)
        samples = measure(field.contestants, arguments.views, plan, lambda what: status.update(f"{case.key}: {what}"))
    return CaseResult(case, work, samples, field.agreement, field.skipped)


def measure_all(results: Results, arguments: argparse.Namespace, console: Console) -> None:
    """Time all cases that the results lack, saving each."""
    ceilings = Ceilings()
    todo = [case for case in cases(arguments) if case.key not in results.cases]
    for number, case in enumerate(todo, start=1):
        result = measure_case(case, arguments, ceilings, console)
        results.cases[case.key] = result
        results.save(arguments.out)
        spread = result.spread("both")
        assert spread is not None
        busy = "" if spread.clean else " (others kept the machine busy)"
        console.print(f"{number}/{len(todo)} {case.key}: {spread.median:.2f} ms{busy}", highlight=False)


def memory_of(who: str, case: Case, seed: int, threads: int) -> dict[str, Any]:
    """Peak memory of forward + backward of one view; runs in a process of its own."""
    torch.set_num_threads(threads)
    load_cpu()
    keep_freed_memory()
    gaussians = furnished_room(case.count, seed)
    view = cameras(case.width, case.height, 1)[0]
    visible = len(ops.project(*gaussians.geometry, view, kind=case.kind, near=NEAR).ids)
    entry: dict[str, Any] = {"who": who, **vars(case), "visible": visible, "bytes": None}
    if who == "queries":
        runner = QueryView(case, gaussians, seed)
    else:
        runner = Views(case, gaussians, 1, seed)
        if who != "ours":
            peer = cast(PeerName, who)
            needed = peer_memory(peer, case, runner.work(), threads)
            if needed > 0.6 * available_memory():
                return entry | {"why": f"needs {needed / 2**30:.0f} GiB"}
            runner = PEERS[peer](runner)
    ctypes.CDLL(None).malloc_trim(0)
    before = peak_memory_reset()
    runner.forward_backward(0)
    return entry | {"bytes": peak_memory() - before}


def measure_memory(results: Results, arguments: argparse.Namespace, console: Console) -> None:
    """Peak memory of everyone as N and C grow, at the first image size."""
    width, height = arguments.sizes[0]
    arguments.sizes = [(width, height)]
    found = {(m["who"], m["count"], m["width"], m["channels"]): m for m in results.memory if arguments.resume}
    results.memory.clear()
    for n in sorted(arguments.gaussians):
        for channels in sorted(arguments.queries):
            case = Case("ellipsoid", n, width, height, channels)
            for who in ("ours", "queries", *peers_of(case, arguments)):
                entry = found.get((who, n, width, channels))
                if entry is None:
                    with (
                        console.status(f"memory: {case.key} {who}"),
                        multiprocessing.get_context("spawn").Pool(1) as pool,
                    ):
                        entry = pool.apply(memory_of, (who, case, arguments.seed, arguments.threads))
                results.memory.append(entry)
                results.save(arguments.out)
                peak = entry["bytes"]
                told = entry["why"] if peak is None else f"{peak / 2**20:.0f} MiB"
                console.print(f"{case.key} {who}: {told}", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, save, write the page."""
    arguments = parse(argv)
    console = Console()
    stopped = False
    try:
        torch.set_num_threads(arguments.threads)
        results = open_results(arguments)
        if not arguments.page_only:
            load_cpu()
            try:
                if arguments.memory:
                    measure_memory(results, arguments, console)
                else:
                    measure_all(results, arguments, console)
            except KeyboardInterrupt:
                stopped = True
                console.print(f"stopped; {arguments.out} has what was measured, --resume goes on")
        if not (results.cases or results.memory):
            return 130
        report.terminal(results, console)
        chart = arguments.page.parent / "images" / f"{arguments.page.stem}.svg"
        write_text(chart, report.figure(results))
        report.splice(arguments.page, MARKER, report.markdown(results))
    except UserError as error:
        console.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        return 2
    return 130 if stopped else 0


if __name__ == "__main__":
    if brief_waits():  # as `panbench` does; torch, imported above, has read the environment
        os.execv(sys.executable, sys.orig_argv)
    sys.exit(main())
