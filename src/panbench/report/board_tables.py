"""The tables of a board: ranking, scenes, classes, instances, bases × heads."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from panbench.report.boards import Board, Entry, slug, value, verdicts
from panbench.report.diagnosis import VERDICTS, confusion
from panbench.report.paper import paper
from panbench.report.plans import PlannedMethod, PlanOutline
from panbench.report.statistics import (
    NO_SEED,
    RESAMPLES,
    Difference,
    Samples,
    SceneRule,
    Summary,
    common_seeds,
    difference,
    scene_means,
    summarise,
)
from panbench.report.tables import Cell, Column, Kind, Row, Section, Table, mark_best

SCORES = (
    Column("PQ", "PQ", help="Panoptic quality: SQ × RQ per class, mean over classes."),
    Column("SQ", "SQ", help="Segmentation quality: mean IoU of matched segments."),
    Column("RQ", "RQ", help="Recognition quality: F1 of matched segments."),
    Column("mIoU", "mIoU", help="Mean IoU of classes, by the protocol's rule."),
    Column("mAcc", "mAcc", help="Mean accuracy of classes, by the protocol's rule."),
    Column("mCov", "mCov", help="Mean over true instances of the IoU with the prediction that overlaps most."),
    Column("mWCov", "mWCov", help="mCov weighted by the instances' pixels."),
)
IMAGE = (
    Column("PSNR", "PSNR", 2, unit="dB", help="Of the rendered test views, mean over frames."),
    Column("SSIM", "SSIM", 3, help="Of the rendered test views, mean over frames."),
    Column("depth_l1", "Depth error", 2, "low", "cm", help="Mean difference of rendered and true depth, test views."),
    Column("depth_delta", "Depth within 5 %", 1, unit="%", help="Share of pixels, against the true depth."),
    Column("sensor_depth_l1", "Depth to sensor", 2, "low", "cm", help="As depth error, but to the noisy sensor depth."),
)
COST = (
    Column("gaussians", "Gaussians", 1, "low", "k", 1e-3, help="Number of Gaussians at the end, in thousands."),
    Column("fit_seconds", "Training", 1, "low", "min", 1 / 60, help="Wall clock of training; machines differ."),
    Column(
        "peak_memory_bytes", "Memory", 2, "low", "GiB", 2**-30, help="Peak: of the GPU, or of the process on a CPU."
    ),
)
MEASURED = (*SCORES, *IMAGE, *COST)
_COMPARED = {column.key for column in (*SCORES, *IMAGE)}
_OF_PROTOCOL = {column.key for column in SCORES}
_COUNTS = (
    Column("seeds", "Seeds", None, "", help="Seeds that every scene of the row has."),
    Column("scenes", "Scenes", None, "", help="Scenes of the row, of those of the table."),
)

VERIFIED = "Run by panbench"
SUBMITTED = "Submitted predictions, scored here"
TRAINING_FREE = "Without training: the pseudo-masks themselves, and their vote in voxels with the test frames' depth"
QUOTED = "Quoted from the paper, not comparable"

_CONFUSIONS = 15


def leaderboard(board: Board) -> Table:
    """All entries, the best first; verified, submitted, training-free and quoted rows apart."""
    columns = _measured_columns(board, board.entries)
    sections: list[Section] = []
    by_section = _by_section(board.entries)
    for title, entries in by_section.items():
        ranked = sorted(entries, key=lambda e: _order(board, e))
        against = by_section.get(VERIFIED, []) if title == TRAINING_FREE else entries
        rows = _score_rows(board, ranked, columns, against, rank=title != TRAINING_FREE)
        sections.append(Section(title, tuple(rows)))
    quoted = _quoted(board, columns)
    if quoted:
        sections.append(Section(QUOTED, tuple(quoted)))
    title = f"Leaderboard: {board.title}"
    return _plain(
        Table(f"{board.slug}-leaderboard", title, "Method", columns, tuple(sections), _notes(board, sections))
    )


def plan_table(plan: PlanOutline, board: Board | None) -> Table:
    """A plan's methods in its order, those that were not run among them, each above the paper's row it names.

    Args:
        plan: the plan.
        board: its results; None if there are none.
    """
    entries = () if board is None else tuple(e for e in board.entries if not e.training_free)
    columns = (*SCORES, *COST, *_COUNTS) if board is None else _measured_columns(board, board.entries)
    if plan.table:
        wanted = {c for c in paper().tables[plan.table].columns if c not in {column.key for column in columns}}
        columns = tuple(c for c in (*MEASURED, *_COUNTS) if c in columns or c.key in wanted)
    planned = list(plan.methods)
    listed = {method.name for method in planned}
    planned += [PlannedMethod(name) for name in sorted({e.method for e in entries} - listed)]
    rows: list[Row] = []
    for method in planned:
        mine = [e for e in entries if e.method == method.name]
        quoted = None
        if plan.table and method.paper:
            small = f"{method.paper} in the paper" if mine else ""
            quoted = paper().tables[plan.table].row(plan.dataset, method.paper, columns, small)
        if board is not None and mine:
            rows += _score_rows(board, mine, columns, entries, rank=False)
            rows += [] if quoted is None else [replace(quoted, name=method.name)]
            continue
        reason = f"not run: {method.unavailable}" if method.unavailable else "not run"
        if quoted is None:
            cells = tuple(Cell() for _ in columns)
            rows.append(Row(method.name, cells, "absent", label=reason, key=f"absent/{method.name}"))
        else:
            small = "; ".join(part for part in (reason, "the paper's figures", quoted.label) if part)
            rows.append(replace(quoted, name=method.name, label=small))
    sections = [Section("", tuple(rows))] if rows else []
    if board is not None:
        free = [e for e in board.entries if e.training_free]
        if free:
            ordered = sorted(free, key=lambda e: e.method)
            sections.append(Section(TRAINING_FREE, tuple(_score_rows(board, ordered, columns, entries, rank=False))))
    title = plan.title or plan.name
    name = f"plan-{slug(plan.name)}"
    notes: tuple[str, ...] = ()
    if board is not None:
        title, name, notes = f"{title}: {board.title}", f"{name}-{board.slug}", _notes(board, sections)
    if any(row.kind == "paper" for row in rows):
        notes = (
            *notes,
            f"Grey rows are quoted from the paper, Table {plan.table} ({plan.dataset}): "
            "other data, training and evaluation code. They are not ranked or compared.",
        )
    return _plain(Table(name, title, "Method", columns, tuple(sections), notes))


def paper_table(number: str, dataset: str) -> Table:
    """A table of the paper."""
    quoted = paper().tables[number]
    columns = tuple(c for c in MEASURED if c.key in quoted.columns)
    many = f" on {dataset}" if len(quoted.datasets) > 1 else ""
    return Table(
        f"paper-{slug(number)}-{slug(dataset)}",
        f"Table {number} of the paper: {quoted.title.lower()}{many}",
        "Method",
        columns,
        (Section("", tuple(quoted.rows(dataset, columns))),),
        (f"Quoted from {paper().authors}, “{paper().title}”. Memory in the paper's G.",),
    )


def scene_table(board: Board, metric: Column) -> Table:
    """One metric by method and scene: mean ± s.d. over the seeds of the scene."""
    columns = tuple(replace(metric, key=scene, title=scene, unit="", help="") for scene in board.scenes)
    sections: list[Section] = []
    for title, entries in _by_section(board.entries).items():
        ordered = sorted(entries, key=lambda e: _order(board, e))
        samples = [e.samples(metric.key, board.scenes) for e in ordered]
        numbers = [[_scene_summary(s, scene).mean * metric.scale for scene in board.scenes] for s in samples]
        best = mark_best(columns, numbers) if title != TRAINING_FREE else [[False] * len(columns) for _ in ordered]
        rows = []
        for entry, sample, marks in zip(ordered, samples, best, strict=True):
            cells = [
                _scene_cell(entry, sample, scene, metric, mark) for scene, mark in zip(board.scenes, marks, strict=True)
            ]
            rows.append(_row(entry, cells))
        sections.append(Section(title, tuple(rows)))
    title = f"{metric.title} by scene: {board.title}"
    note = "Mean ± standard deviation over the seeds of the scene, without ± for one seed."
    return _plain(Table(f"{board.slug}-scenes-{slug(metric.key)}", title, "Method", columns, tuple(sections), (note,)))


def class_table(board: Board, metric: str) -> Table | None:
    """One metric ("PQ", "iou" or "accuracy") by class and method; None if no class was scored."""
    title = {"PQ": "PQ", "iou": "IoU", "accuracy": "accuracy"}[metric]
    entries = [e for part in _by_section(board.entries).values() for e in sorted(part, key=lambda e: _order(board, e))]
    pixels: dict[str, float] = defaultdict(float)
    things: dict[str, bool] = {}
    by_entry: list[dict[str, Samples]] = []
    for entry in entries:
        values: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for scene, seeds in entry.results.items():
            for seed, stored in seeds.items():
                for item in stored.result.per_class:
                    things[item.name] = item.thing
                    if item.present:
                        values[item.name][scene][seed] = getattr(item, metric)
        by_entry.append({name: dict(scenes) for name, scenes in values.items()})
    for seeds in _one_result_a_scene(board):
        for item in seeds.result.per_class:
            pixels[item.name] += item.true_pixels
    total = sum(pixels.values())
    if not total:
        return None
    columns = (
        Column("kind", "Kind", None, ""),
        Column("pixels", "Pixels", 1, "", "%", help="Share of the true pixels of all scenes."),
        *(Column(slug(e.name), e.name, help="; ".join(e.plan_names)) for e in entries),
    )
    rows = []
    for name in sorted(pixels, key=lambda n: -pixels[n]):
        if not pixels[name]:
            continue
        summaries = [summarise(values.get(name, {}), "mean") for values in by_entry]
        trained = [math.nan if e.training_free else s.mean for e, s in zip(entries, summaries, strict=True)]
        best = [marks[0] for marks in mark_best(columns[2:3], [[mean] for mean in trained])]
        cells = [
            Cell(s.mean, n=s.seeds * s.scenes, spread=s.sd, best=mark) for s, mark in zip(summaries, best, strict=True)
        ]
        share = Cell(100 * pixels[name] / total)
        rows.append(Row(name, (Cell(text="thing" if things[name] else "stuff"), share, *cells), key=name))
    note = "Mean over seeds, then over the scenes that have the class (± s.d. over seeds); largest classes first."
    name = f"{board.slug}-classes-{slug(title)}"
    return Table(name, f"{title} by class: {board.title}", "Class", columns, (Section("", tuple(rows)),), (note,))


def confusion_table(board: Board) -> Table | None:
    """Which classes were taken for which, by method: per cent of the true class's pixels; None without any."""
    entries = [e for part in _by_section(board.entries).values() for e in sorted(part, key=lambda e: _order(board, e))]
    wrong: list[dict[tuple[str, str], int]] = []
    total: list[dict[str, int]] = []
    for entry in entries:
        pixels: dict[tuple[str, str], int] = defaultdict(int)
        there: dict[str, int] = defaultdict(int)
        for stored in entry.all():
            names, matrix = confusion(stored.result)
            for i, j in np.argwhere(matrix).tolist():
                there[names[i]] += int(matrix[i, j])
                if i != j:
                    pixels[names[i], names[j]] += int(matrix[i, j])
        wrong.append(pixels)
        total.append(there)
    # Of the best method, whose mistakes are those that are left to be mended.
    first = wrong[0] if wrong else {}
    pairs = sorted(first, key=lambda pair: (-first[pair], pair))[:_CONFUSIONS]
    if not pairs:
        return None
    columns = tuple(Column(slug(e.name), e.name, 1, "low", help="; ".join(e.plan_names)) for e in entries)
    rows: list[Row] = []
    for a, b in pairs:
        shares = [100 * w[a, b] / t[a] if t[a] else math.nan for w, t in zip(wrong, total, strict=True)]
        rows.append(Row(f"{a} as {b}", tuple(map(Cell, shares)), key=f"{a}/{b}"))
    note = "Per cent of the pixels of the true class, all seeds and scenes; most pixels in the first method first."
    title, name = f"Classes taken for others: {board.title}", f"{board.slug}-classes-confused"
    return Table(name, title, "True class as predicted", columns, (Section("", tuple(rows)),), (note,))


def verdict_table(board: Board) -> Table:
    """What became of the true instances, per cent."""
    columns = (
        *(Column(slug(v), v, 1, "high" if v == "found" else "low", "%", help=_VERDICT_HELP[v]) for v in VERDICTS),
        Column("switches", "id switches", 1, "low", help="Changes of the predicted id between frames, per instance."),
        Column("instances", "instances", 0, "", help="True instances of the row's scenes."),
    )
    sections: list[Section] = []
    for title, entries in _by_section(board.entries).items():
        ordered = sorted(entries, key=lambda e: _order(board, e))
        counts = [verdicts(e, board.scenes) for e in ordered]
        numbers = [
            [
                *(100 * c.get(v, 0.0) / c["all"] if c.get("all") else math.nan for v in VERDICTS),
                c.get("switches", 0.0) / c["all"] if c.get("all") else math.nan,
                c.get("all", math.nan),
            ]
            for c in counts
        ]
        complete = [n if board.complete(e) else [math.nan] * len(n) for e, n in zip(ordered, numbers, strict=True)]
        marks = mark_best(columns, complete)
        rows = [
            _row(entry, [Cell(v, best=m and title != TRAINING_FREE) for v, m in zip(line, mark, strict=True)])
            for entry, line, mark in zip(ordered, numbers, marks, strict=True)
        ]
        sections.append(Section(title, tuple(rows)))
    note = "Per cent of the true instances of all scenes; mean over seeds."
    return _plain(
        Table(f"{board.slug}-instances", f"Instances: {board.title}", "Method", columns, tuple(sections), (note,))
    )


def matrix(board: Board, plan: str, metric: Column) -> Table | None:
    """One metric by base and head, of the results that a plan made by crossing them; None if there are none."""
    cells: dict[tuple[str, str], Entry] = {}
    for entry in board.entries:
        for stored in entry.all():
            bench = stored.result.bench
            if bench is not None and bench.plan == plan and bench.base and bench.head:
                key = bench.base, bench.head
                cells[key] = max(cells.get(key, entry), entry, key=_newest_of)
    if not cells:
        return None
    bases, heads = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    columns = tuple(replace(metric, key=slug(head), title=head, help="") for head in heads)
    scenes = board.defined_scenes(metric.key)
    samples = {key: entry.samples(metric.key, scenes) for key, entry in cells.items()}
    means = {key: summarise(s, _rule(board, metric.key)) for key, s in samples.items()}
    full = {key for key, entry in cells.items() if board.complete(entry) and not math.isnan(means[key].mean)}
    sign = -1 if metric.better == "low" else 1
    top = max(full, key=lambda key: sign * means[key].mean) if len(full) > 1 else None
    rows = []
    for base in bases:
        line = []
        for head in heads:
            key = base, head
            if key not in cells:
                line.append(Cell(text="not run"))
                continue
            d = None
            if top is not None and key != top and key in full and metric.key in _COMPARED:
                d = difference(samples[key], samples[top], _rule(board, metric.key))
            missing = "" if board.complete(cells[key]) else _missing(board, cells[key])
            line.append(_cell(means[key], metric, best=key == top, d=d, note=missing))
        rows.append(Row(base, tuple(line), key=base))
    title = f"{metric.title} by base and head: {plan}, {board.title}"
    note = _difference_note([c.difference for row in rows for c in row.cells if c.difference is not None])
    return Table(
        f"{board.slug}-matrix-{slug(plan)}-{slug(metric.key)}",
        title,
        "Base",
        columns,
        (Section("", tuple(rows)),),
        tuple(n for n in (_spread_note(), note) if n),
    )


_VERDICT_HELP = {
    "found": "One prediction covers it, with the right class.",
    "poor": "Found, but covered badly.",
    "split": "Several predictions share it.",
    "merged": "Its prediction covers other instances too.",
    "wrong class": "Covered by a prediction of another class.",
    "missed": "Nothing covers it.",
}


def _by_section(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    out: dict[str, list[Entry]] = {VERIFIED: [], SUBMITTED: [], TRAINING_FREE: []}
    for entry in entries:
        free = TRAINING_FREE if entry.training_free else VERIFIED
        out[SUBMITTED if entry.trust == "submitted" else free].append(entry)
    return {title: members for title, members in out.items() if members}


def _order(board: Board, entry: Entry) -> tuple[bool, float, str]:
    """Complete rows first, then by PQ, then by name."""
    mean = summarise(entry.samples("PQ", board.defined_scenes("PQ")), board.rule).mean
    return not board.complete(entry), math.inf if math.isnan(mean) else -mean, entry.name


def _newest_of(entry: Entry) -> str:
    return max(stored.result.origin.created for stored in entry.all())


def _measured_columns(board: Board, entries: Sequence[Entry]) -> tuple[Column, ...]:
    """Columns with a value of any entry, the scores always."""
    results = [stored.result for entry in entries for stored in entry.all()]
    more = (c for c in (*IMAGE, *COST) if any(not math.isnan(value(result, c.key)) for result in results))
    return (*SCORES, *more, *_COUNTS)


def _score_rows(
    board: Board, entries: Sequence[Entry], columns: Sequence[Column], against: Sequence[Entry], *, rank: bool
) -> list[Row]:
    """Rows of ``entries`` in order. Complete ones are compared with the best of ``against`` in each column."""
    measured = [c for c in columns if c.numeric]
    samples = {
        (e.key, c.key): e.samples(c.key, board.defined_scenes(c.key))
        for e in {e.key: e for e in (*entries, *against)}.values()
        for c in measured
    }
    summaries = {key: summarise(s, _rule(board, key[1])) for key, s in samples.items()}
    field = [e for e in against if board.complete(e)]
    table = [[summaries[e.key, c.key].mean * c.scale for c in measured] for e in field]
    marks = {e.key: dict(zip(measured, m, strict=True)) for e, m in zip(field, mark_best(measured, table), strict=True)}
    leaders: dict[str, Entry] = {}
    for column in measured:
        known = [e for e in field if not math.isnan(summaries[e.key, column.key].mean)]
        if column.key in _COMPARED and known:
            best_of = min if column.better == "low" else max
            leaders[column.key] = best_of(known, key=lambda e: summaries[e.key, column.key].mean)
    rows: list[Row] = []
    for entry in entries:
        cells: list[Cell] = []
        whole = board.complete(entry)
        for column in columns:
            if not column.numeric:
                cells.append(Cell(text=_seeds(entry) if column.key == "seeds" else _scenes(board, entry)))
                continue
            leader = leaders.get(column.key)
            d = None
            if whole and leader is not None and leader.key != entry.key:
                rule = _rule(board, column.key)
                d = difference(samples[entry.key, column.key], samples[leader.key, column.key], rule)
            best = marks.get(entry.key, {}).get(column, False) and entry in field
            cells.append(_cell(summaries[entry.key, column.key], column, best=best, d=d))
        placed = len([r for r in rows if r.rank is not None]) + 1 if rank and whole else None
        rows.append(replace(_row(entry, cells), rank=placed, note="" if whole else _missing(board, entry)))
    return rows


def _row(entry: Entry, cells: Sequence[Cell]) -> Row:
    kind: Kind = "submitted" if entry.trust == "submitted" else "verified"
    label = ", ".join([*(["own masks"] if entry.own_labels else []), *entry.plan_names])
    return Row(entry.name, tuple(cells), kind, label=label, key=entry.key)


def _cell(summary: Summary, column: Column, *, best: bool, d: Difference | None, note: str = "") -> Cell:
    if d is not None and math.isnan(d.value):
        d = None
    return Cell(
        summary.mean * column.scale,
        spread=summary.sd * column.scale,
        n=summary.seeds * summary.scenes,
        best=best,
        difference=d,
        note=note,
    )


def _scene_summary(samples: Samples, scene: str) -> Summary:
    return summarise({scene: samples[scene]} if scene in samples else {}, "mean")


def _scene_cell(entry: Entry, samples: Samples, scene: str, metric: Column, best: bool) -> Cell:
    if scene not in samples:
        return Cell(text="not run")
    cell = _cell(_scene_summary(samples, scene), metric, best=best, d=None)
    first = entry.results[scene][min(entry.results[scene])]
    return replace(cell, href=f"results.html#r-{first.hash[:12]}")


def _one_result_a_scene(board: Board):
    for scene in board.scenes:
        yield next(e.results[scene][min(e.results[scene])] for e in board.entries if scene in e.results)


def _seeds(entry: Entry) -> str:
    sets = {tuple(sorted(seeds)) for seeds in entry.results.values()}
    if sets == {(NO_SEED,)}:
        return "none"
    counts = sorted({len(seeds) for seeds in sets})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _scenes(board: Board, entry: Entry) -> str:
    return str(len(board.scenes)) if board.complete(entry) else f"{len(entry.results)} of {len(board.scenes)}"


def _missing(board: Board, entry: Entry) -> str:
    missing = [scene for scene in board.scenes if scene not in entry.results]
    listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return f"not ranked: without {listed}"


def _quoted(board: Board, columns: tuple[Column, ...]) -> list[Row]:
    """The paper's Table I, beside the paper's scenes under the published protocol of their data set."""
    if board.key.synthetic or board.key.protocol.partition("@")[0] != f"{board.key.dataset}-paper":
        return []
    if not set(board.scenes) & set(paper().scenes.get(board.key.dataset, ())):
        return []
    return paper().tables["I"].rows(board.key.dataset, columns)


def _notes(board: Board, sections: Sequence[Section]) -> tuple[str, ...]:
    cells = [cell for section in sections for row in section.rows for cell in row.cells]
    notes = [_spread_note(), _few_seeds(board), _difference_note([c.difference for c in cells if c.difference])]
    if board.rule == "rounded-mean" and len(board.scenes) > 1:
        notes.append(f"{board.key.protocol} rounds the value of each scene to one decimal before averaging scenes.")
    return tuple(note for note in notes if note)


def _spread_note() -> str:
    return "Mean over seeds, then over scenes; ± is the standard deviation over seeds of the mean over scenes."


def _few_seeds(board: Board) -> str:
    counts = {e.name: len(common_seeds(e.samples("PQ", board.scenes))) for e in board.entries if not e.training_free}
    few = [f"{name} ({n or 'none in common'})" for name, n in counts.items() if n < 3]
    if not few:
        return ""
    named = ", ".join(few[:4]) + (f" and {len(few) - 4} more" if len(few) > 4 else "")
    return f"Fewer than three seeds, too few to know the spread: {named}."


def _difference_note(differences: Sequence[Difference | None]) -> str:
    known = [d for d in differences if d is not None]
    if not known:
        return ""
    over = sorted({d.over for d in known if d.over})
    if not over:
        return "One scene and one seed: nothing can be resampled, so no difference is shown to be more than noise."
    limits = {
        "scenes": "over scenes alone, since a seed was run once",
        "seeds": "over seeds alone, since there is one scene: it says nothing of other scenes",
        "scenes and seeds": "over scenes and seeds",
    }
    return (
        f"Differences to the best value of a column: paired hierarchical bootstrap "
        f"{'; or '.join(limits[o] for o in over)} ({RESAMPLES} draws). "
        "≈ or grey: the 95 % interval holds 0, so the difference lies inside the noise."
    )


def _rule(board: Board, metric: str) -> SceneRule:
    """The protocol's rule for its own scores; all else is averaged as it is."""
    return board.rule if metric in _OF_PROTOCOL else "mean"


def _plain(table: Table) -> Table:
    """A table of one section needs no heading, unless its rows are no runs of methods."""
    if len(table.sections) == 1 and table.sections[0].title == VERIFIED:
        return replace(table, sections=(replace(table.sections[0], title=""),))
    return table


def study_samples(points: Mapping[int, Board], metric: str) -> dict[str, dict[int, Summary]]:
    """Summaries of a metric by method and study point. A method counts where it has all scenes of the point."""
    out: dict[str, dict[int, Summary]] = defaultdict(dict)
    for order, board in points.items():
        for entry in board.entries:
            samples = entry.samples(metric, board.defined_scenes(metric))
            if board.complete(entry) and scene_means(samples):
                out[entry.name][order] = summarise(samples, _rule(board, metric))
    return dict(out)
