"""The generated part of docs/performance.md, its chart, and the summary on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark import chart
from benchmark.results import TARGETS, CaseResult, Results, Target, channel_shares
from benchmark.timing import CONTENDED, Spread
from benchmark.views import thousands
from panbench.errors import UserError
from panbench.training.files import write_text

PEER_TITLES = {
    "plain": "plain C++",
    "plain_threaded": "plain C++, threaded",
    "opensplat": "OpenSplat",
    "torch_pairs": "pure torch, pairs",
    "reference": "pure torch, tiles",
    "gsplat": "gsplat (CUDA)",
}
MEMORY_TITLES = {"ours": "ours", "queries": "ours, with queries"} | PEER_TITLES
_PANEL = (640, 400)


def splice(page: Path, name: str, generated: str) -> None:
    """Put text between the page's markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.

    Raises:
        UserError: the page is missing or lacks them.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = page.read_text() if page.is_file() else ""
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise UserError(f"{page}: has no lines {begin} and {end} to write between; add them")
    write_text(page, f"{head}{begin}\n{generated.strip()}\n{end}{tail}")


def markdown(results: Results) -> str:
    """All tables."""
    parts = [_machine(results), _targets(results), _times(results), _stages(results), _ceilings(results)]
    parts += [_agreement(results), _memory(results)]
    return "\n\n".join(part for part in parts if part)


def figure(results: Results) -> str:
    """Chart: time by channels for everyone, and where our time goes."""
    panels = [_channel_lines(results), _stage_bars(results)]
    if results.memory:
        panels.append(_memory_lines(results))
    return chart.page(panels, *_PANEL)


def terminal(results: Results, console: Console) -> None:
    """Targets, and everyone's time in short."""
    times = Table("forward + backward", "ours, ms", *PEER_TITLES.values())
    for r in results.ordered():
        ratios = [r.ratio(f"{name} both", "both") for name in PEER_TITLES]
        times.add_row(_name(r), _number(r.spread("both")), *(_number(v, "×") for v in ratios))
    console.print(times)
    targets = Table("target", "bound", "worst", "case", "")
    for target in TARGETS:
        worst = target.worst(results)
        name, value = (_name(worst[0]), worst[1]) if worst else ("", None)
        targets.add_row(target.name, _bound(target), _number(value), name, _verdict(target, value))
    console.print(targets)


def _machine(results: Results) -> str:
    m, s = results.machine, results.settings
    contended = sum(not v.clean for r in results.cases.values() if (v := r.spread("both")))
    ceilings = [r for r in results.ordered() if r.spread("peak copy")]
    lines = [
        f"Measured on {m['processor']} (family/model {m['family_model']}; {', '.join(m['instruction_sets'])}), "
        f"{m['cores']} cores, {m['memory_gib']} GiB; {m['system']}; {m['compiler']}; Python {m['python']}, "
        f"torch {m['torch']}; commit {m['commit']}. {s['threads']} threads, {s['views']} views, seed {s['seed']}, "
        f"{s['rounds']} rounds. Freed memory is {m['freed_memory']}, for everyone."
    ]
    if m.get("opensplat"):
        lines.append(f"OpenSplat: commit {m['opensplat']}.")
    if ceilings:
        last = ceilings[-1]
        fma = {f"{n} thread{'s' * (n > 1)}": last.peak(n) / 1e9 for n in sorted({1, results.threads})}
        rates = ", ".join(f"{rate:.0f} GFLOP/s on {name}" for name, rate in fma.items())
        lines.append(f"Measured ceilings: {rates}; copies {last.median('peak copy') / 1e9:.0f} GB/s.")
    if contended:
        lines.append(
            f"**{contended} of {len(results.cases)} cases are marked c**: other processes used more than "
            f"{CONTENDED:.2f} of a core in so many rounds that their samples were kept. Their times are too long, "
            "their ratios rough."
        )
    return "\n\n".join(lines)


def _targets(results: Results) -> str:
    rows: list[list[str]] = []
    for target in TARGETS:
        worst, best = target.worst(results), target.best(results)
        found = [f"{spread(at[1])}: {_name(at[0])}" if at else "–" for at in (worst, best)]
        rows.append([target.name, _bound(target), *found, _verdict(target, worst[1] if worst else None)])
    return "### Targets\n\n" + table(["target", "bound", "worst case", "best case", ""], rows)


def _times(results: Results) -> str:
    rows: list[list[str]] = []
    for r in results.ordered():
        row = [_name(r), spread(r.spread("forward")), spread(r.spread("both"))]
        for name in PEER_TITLES:
            row.append(_with_ratio(r, name))
        rows.append(row)
    head = ["case", "forward", "forward + backward", *PEER_TITLES.values()]
    note = (
        "Medians over rounds (least – largest), ms per image. Peers: forward + backward, and how many times as long as "
        "ours, as a ratio taken within each round. c: contended."
    )
    if results.settings.get("slow_peers") == "smallest":
        note += " Pure torch takes part where N and the image are smallest only."
    return f"### Times\n\n{note}\n\n" + table(head, rows)


def _stages(results: Results) -> str:
    rows: list[list[str]] = []
    for r in results.ordered():
        stages, whole = r.stages(), r.median("both")
        wider = r.ratio("both", "both at 3 channels")
        cells = [f"{ms:.2f} ({100 * ms / whole:.0f} %)" for ms in stages.values()]
        rows.append([_name(r), *cells, spread(wider, 2)])
    names = [name.replace("_", " ") for name in (*results.ordered()[0].stages(),)] if results.cases else []
    note = (
        "ms per image and share of forward + backward. Glue is what the whole takes beyond its stages: autograd, "
        "gathering and allocating."
    )
    return f"### Stages\n\n{note}\n\n" + table(["case", *names, "time in that of C = 3"], rows)


def _ceilings(results: Results) -> str:
    products = {r.case.key: f"{share.median:.0f} %" for r, share in channel_shares(results)}
    rows: list[list[str]] = []
    for r in results.ordered():
        pixels = r.case.width * r.case.height
        roof = r.roofline(results.threads)
        rows.append(
            [
                _name(r),
                f"{r.work['visible'] / 1e3:.1f}k",
                f"{r.work['contributions'] / 1e6:.2f} M" if roof else "–",
                f"{r.work['contributions'] / pixels:.1f}" if roof else "–",
                f"{r.work['lane_use']:.2f}" if roof else "–",
                *([f"{100 * share:.0f} %" for share in roof] if roof else ["–", "–"]),
                products.get(r.case.key, "–"),
                spread(r.ratio("both 1 thread", "both"), 2),
                spread(r.ratio("both v3", "both"), 2),
                spread(r.ratio("both portable", "both"), 2),
            ]
        )
    note = (
        "Contributions are (pixel, Gaussian) pairs that are blended: alpha ≥ 1/255, and more than 1e-4 of the light "
        "left. A SIMD register holds a block of 4 × 4 pixels; lane use is the share of them that a Gaussian "
        "contributes to if it contributes to any, and what it leaves counts as work. Roofline: the floor of "
        "blending (30 + 2 C operations forward and 62 + 4 C backward per pixel of such a block at the measured FMA "
        "peak, or each array moved once at the measured bandwidth, whichever is longer) over its time. Channel "
        "products: 6 operations for a channel of such a pixel, over the time that both ways take beyond the same "
        "case at C = 32, in that peak. Last columns: time on one thread, with AVX2 and without either "
        "(`PANBENCH_ISA`), in that of two threads with all this machine has."
    )
    head = ["case", "visible", "contributions", "per pixel", "lane use", "roofline forward", "backward"]
    return f"### Ceilings\n\n{note}\n\n" + table([*head, "channel products", "one thread", "AVX2", "portable"], rows)


def _agreement(results: Results) -> str:
    rows: list[list[str]] = []
    for name in PEER_TITLES:
        found = [r.agreement[name] for r in results.cases.values() if name in r.agreement]
        if found:
            worst = [max(values[what] for values in found) for what in found[0]]
            rows.append([PEER_TITLES[name], str(len(found)), *(f"{value:.0e}" for value in worst)])
    absent: dict[tuple[str, str], list[str]] = {}
    for r in results.ordered():
        for name, why in r.skipped.items():
            absent.setdefault((PEER_TITLES[name], why), []).append(_name(r))
    head = ["peer", "cases", "image", "means", "quats", "log scales", "opacity", "features"]
    text = "### Agreement\n\nLargest relative L2 difference of a peer from ours, first view of each case.\n\n"
    text += table(head, rows)
    lines = [
        f"- {name}, not run: {why}" + ("." if len(where) == len(results.cases) else f": {'; '.join(where)}.")
        for (name, why), where in absent.items()
    ]
    return text + ("\n\n" + "\n".join(lines) if lines else "")


def _memory(results: Results) -> str:
    if not results.memory:
        return ""
    whos: list[str] = list(dict.fromkeys(str(m["who"]) for m in results.memory))
    cases: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    for m in results.memory:
        cases.setdefault((m["count"], m["channels"]), {})[m["who"]] = m
    rows: list[list[str]] = []
    for (count, channels), by in cases.items():
        visible = next(iter(by.values()))["visible"]
        cells = [_mib(by[who]) if who in by else "–" for who in whos]
        sizes = [f"{4 * n * channels / 2**20:.0f}" for n in (visible, count)]
        rows.append([thousands(count), f"{visible / 1e3:.1f}k", str(channels), *sizes, *cells])
    first = results.memory[0]
    note = (
        f"MiB at the peak of forward + backward of one view of {first['width']}x{first['height']} beyond what the "
        "process held before (parameters, feature table, gradient of the image), each in a process of its own. *With "
        "queries*: the channels are C queries' answers to 32 features of each visible Gaussian, as a query head makes "
        "them, and gradients go to features and queries. For comparison: a float32 for every channel of the visible "
        "Gaussians, and of all of them."
    )
    head = ["N", "visible", "C", "visible x C", "N x C", *(MEMORY_TITLES.get(who, who) for who in whos)]
    return f"### Memory\n\n{note}\n\n" + table(head, rows)


def _mib(entry: dict[str, Any]) -> str:
    return f"{entry['bytes'] / 2**20:.0f}" if entry["bytes"] is not None else entry["why"]


def _channel_lines(results: Results) -> str:
    chosen = next((r.case for r in results.ordered("ellipsoid", 128) if r.agreement), None)
    cases = [r for r in results.ordered("ellipsoid") if chosen and _place(r) == (chosen.count, chosen.width)]
    names = {"both": "ours"} | {f"{peer} both": title for peer, title in PEER_TITLES.items()}
    series = {
        title: {float(r.case.channels): r.median(name) for r in cases if not math.isnan(r.median(name))}
        for name, title in names.items()
    }
    where = f"{thousands(chosen.count)} Gaussians, {chosen.width}x{chosen.height}" if chosen else ""
    return chart.lines(f"Forward + backward, ms: {where}", "channels", series, *_PANEL)


def _stage_bars(results: Results) -> str:
    shown = [r for r in results.ordered("ellipsoid") if r.case.channels in (3, 128)]
    rows = [
        (_name(r), {name.replace("_", " "): ms for name, ms in r.stages().items()}, f"{r.median('both'):.1f} ms")
        for r in shown[-10:]
    ]
    return chart.bars("Where our time goes", rows, *_PANEL)


def _memory_lines(results: Results) -> str:
    series: dict[str, dict[float, float]] = {}
    for m in results.memory:
        if m["bytes"] is not None and m["who"] in ("queries", "plain"):
            name = f"{'plain C++' if m['who'] == 'plain' else 'ours'}, C = {m['channels']}"
            series.setdefault(name, {})[m["visible"]] = max(m["bytes"] / 2**20, 1.0)
    return chart.lines("Peak memory, MiB", "visible Gaussians", series, *_PANEL)


def _place(r: CaseResult) -> tuple[int, int]:
    return r.case.count, r.case.width


def _name(r: CaseResult) -> str:
    kind = "" if r.case.kind == "ellipsoid" else " discs"
    return f"{thousands(r.case.count)}{kind}, {r.case.width}x{r.case.height}, C = {r.case.channels}"


def _with_ratio(r: CaseResult, peer: str) -> str:
    times = r.ratio(f"{peer} both", "both")
    return f"{r.median(f'{peer} both'):.0f} ms, {spread(times, unit='×')}" if times else "–"


def _number(value: Spread | None, unit: str = "") -> str:
    """The median, marked if contended."""
    return f"{value.median:.{_digits(value)}f}{unit}{'' if value.clean else ' c'}" if value else "–"


def spread(value: Spread | None, digits: int = 1, unit: str = "") -> str:
    """The median and what lies around it, marked if contended."""
    if value is None or value.low == value.high:
        return _number(value, unit)
    digits = min(digits, _digits(value))
    around = f"({value.low:.{digits}f} – {value.high:.{digits}f})"
    return f"{value.median:.{digits}f}{unit} {around}{'' if value.clean else ' c'}"


def _digits(value: Spread) -> int:
    return 0 if value.median >= 30 else 1 if value.median >= 3 else 2


def _bound(target: Target) -> str:
    return f"{'≥' if target.at_least else '≤'} {target.bound:g}"


def _verdict(target: Target, value: Spread | None) -> str:
    if value is None:
        return "not measured"
    return "met" if target.met(value) else "missed"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
