"""The verb ``panbench results``: look at, check, and bring together stored results. No training, no data, no GPU."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from panbench.errors import UserError

if TYPE_CHECKING:
    from panbench.protocol.results import SceneResult
    from panbench.protocol.store import ResultStore, StoredResult

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Run ``panbench results ...``; returns the exit status.

    Raises:
        UserError: with cause and remedy, if a result or a store is missing or damaged.
    """
    args = _parser().parse_args(list(argv))

    from panbench.protocol.store import ResultStore

    store = ResultStore(args.store)
    command: Callable[[ResultStore, argparse.Namespace], int] = args.command
    return command(store, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="panbench results",
        description="A results store is a folder of results that never change, each named by the hash of its content.",
    )
    store = argparse.ArgumentParser(add_help=False)
    store.add_argument("--store", type=Path, default=Path("results"), help="the store (default: results)")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(
        name: str, command: Callable[[ResultStore, argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[store])
        sub.set_defaults(command=command)
        return sub

    listing = verb("list", _list, "show what is stored")
    for what in ("dataset", "scene", "protocol", "method"):
        listing.add_argument(f"--{what}", help=f"only this {what}")
    diff = verb("diff", _diff, "compare two results, or say why they must not be compared")
    diff.add_argument("results", nargs=2, metavar="RESULT", help="hash (four digits are enough) or JSON file")
    verb("verify", _verify, "see that every file is still what was stored")
    merge = verb("merge", _merge, "copy the results of other stores into this one")
    merge.add_argument("others", nargs="+", type=Path, metavar="STORE")
    add = verb("add", _add, "store the results of run directories, or JSON files of panbench eval --save")
    add.add_argument("paths", nargs="+", type=Path, metavar="RUN|FILE")
    rescore = verb("rescore", _rescore, "score everything under another protocol, from the stored counts")
    rescore.add_argument("--protocol", required=True, help="name@version")
    return parser


def _list(store: ResultStore, args: argparse.Namespace) -> int:
    from panbench.cli.console import stdout
    from panbench.report.summary import METRICS

    found = [
        s
        for s in _all(store)
        if all(getattr(args, k) in (None, getattr(s.result, k)) for k in ("dataset", "scene", "protocol", "method"))
    ]
    lines = [["result", "dataset", "scene", "protocol", "method", "seed", "masks", *METRICS, "by"]]
    for s in found:
        r = s.result
        masks = "own" if r.labels == "own" else r.origin.masks or "–"
        facts = [r.dataset + ("*" if r.synthetic else ""), r.scene, r.protocol, r.method]
        seed = "–" if r.seed is None else str(r.seed)
        lines.append([s.hash[:8], *facts, seed, masks, *(_number(r, m) for m in METRICS), r.origin.trust])
    console = stdout()
    for line in _aligned(lines, numbers=range(7, 7 + len(METRICS))):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{len(found)} results{'; * synthetic' if any(s.result.synthetic for s in found) else ''}", highlight=False
    )
    return 0


def _diff(store: ResultStore, args: argparse.Namespace) -> int:
    from panbench.cli.console import stdout
    from panbench.protocol.compare import obstacles
    from panbench.report.summary import METRICS
    from panbench.training.run_dir import differences

    a, b = (_named(store, name) for name in args.results)
    reasons = obstacles(a, b)
    if reasons:
        raise UserError(f"{args.results[0]} and {args.results[1]} cannot be compared: {'; '.join(reasons)}")
    console = stdout()
    lines = [[f"{a.scene}, {a.protocol}", _title(a), _title(b), "difference"]]
    for metric, digits in (*((m, 1) for m in METRICS), ("PSNR", 2), ("SSIM", 3), ("depth_l1", 2)):
        if metric in a.metrics and metric in b.metrics:
            change = b.metrics[metric] - a.metrics[metric]
            shown = "–" if math.isnan(change) else f"{change:+.{digits + 1}f}"
            lines.append([metric, _number(a, metric, digits), _number(b, metric, digits), shown])
    for line in _aligned(lines, numbers=range(1, 4)):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    classes = {c.id: c for c in b.per_class}
    worst = sorted(
        ((classes[c.id].PQ - c.PQ, c.name) for c in a.per_class if c.id in classes and c.present),
        key=lambda item: -abs(item[0]),
    )
    shown = ", ".join(f"{name} {change:+.1f}" for change, name in worst[:6] if abs(change) >= 0.05)
    console.print(f"PQ of classes: {shown or 'no difference'}", highlight=False, soft_wrap=True, markup=False)
    for line in differences(_settings(a), _settings(b)):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return 0


def _verify(store: ResultStore, args: argparse.Namespace) -> int:
    from panbench.cli.console import stdout

    _needs_folder(store)
    count, faults = len(store.paths()), list(store.faults())
    for path, fault in faults:
        stdout().print(f"{path}: {fault}", highlight=False, soft_wrap=True, markup=False)
    stdout().print(f"{count - len(faults)} of {count} results are as they were stored", highlight=False)
    return 1 if faults else 0


def _merge(store: ResultStore, args: argparse.Namespace) -> int:
    from panbench.protocol.store import ResultStore

    others = [ResultStore(path) for path in args.others]
    for other in others:
        _needs_folder(other)
        faults = list(other.faults())
        if faults:
            raise UserError(f"{faults[0][0]}: {faults[0][1]}; nothing was merged: mend or remove it")
    log.info("%d results added to %s", sum(store.merge(other) for other in others), store.folder)
    return 0


def _add(store: ResultStore, args: argparse.Namespace) -> int:
    from panbench.protocol.results import SceneResult

    loaded: list[SceneResult] = []
    for given in args.paths:
        first, *others = [SceneResult.load(path) for path in _result_files(given)]
        for other in others:
            # Of the training-free rows, schema 1 recorded the hash of the masks but not their name.
            if not other.origin.masks and other.origin.mask_hash == first.origin.mask_hash:
                other.origin.masks = first.origin.masks
        loaded += [first, *others]
    for result in loaded:
        log.info("%s  %s on %s, %s", store.add(result)[:8], result.method, result.scene, result.protocol)
    return 0


def _result_files(given: Path) -> Iterator[Path]:
    if given.is_file():
        yield given
        return
    if not (given / "result.json").is_file():
        raise UserError(
            f"{given}: is neither a result nor a run directory with scores: give panbench eval --save's file"
        )
    yield given / "result.json"
    yield from sorted((given / "results").glob("*.json"))


def _rescore(store: ResultStore, args: argparse.Namespace) -> int:
    from panbench.protocol import Protocol, rescore

    protocol = Protocol.load(args.protocol)
    # A run has a result a protocol: one of them is enough to count again from.
    unique: dict[tuple[object, ...], SceneResult] = {}
    known: set[tuple[object, ...]] = set()
    for found in _all(store):
        r = found.result
        key = (r.method, r.dataset, r.scene, r.seed, r.origin.settings_hash, r.origin.mask_hash, r.counts.data)
        if r.protocol_hash == protocol.hash:
            known.add(key)
        unique.setdefault(key, r)
    added = 0
    for key, result in unique.items():
        if key in known:
            continue
        try:
            store.add(rescore(result, protocol))
        except UserError as error:
            log.warning("%s on %s: %s", result.method, result.scene, error)
        else:
            added += 1
    log.info("%d results under %s added to %s", added, protocol.id, store.folder)
    return 0


def _all(store: ResultStore) -> list[StoredResult]:
    _needs_folder(store)
    return list(store)


def _needs_folder(store: ResultStore) -> None:
    if not store.folder.is_dir():
        raise UserError(f"{store.folder}: there is no results store; panbench bench makes one, or name it with --store")


def _named(store: ResultStore, name: str) -> SceneResult:
    from panbench.protocol.results import SceneResult

    return SceneResult.load(Path(name)) if Path(name).is_file() else store.get(name).result


def _title(result: SceneResult) -> str:
    return result.method if result.seed is None else f"{result.method} s{result.seed}"


def _settings(result: SceneResult) -> dict[str, object]:
    """What a reader wants to see differ: the method's settings, the seed, the masks, the versions."""
    parts = {key: result.config.get(key) for key in ("model", "data", "trainer", "seed_everything")}
    versions = {key: result.provenance.get(key) for key in ("versions", "machine", "backend")}
    return {**parts, **versions, "commit": result.commit}


def _number(result: SceneResult, metric: str, digits: int = 1) -> str:
    value = result.metrics.get(metric, math.nan)
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> Iterator[str]:
    """Lines of a table, as wide as it is: what reads a pipe wants whole rows. ``numbers``: columns set to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        yield "  ".join(cells).rstrip()
