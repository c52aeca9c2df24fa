"""The report: one folder of pages and tables, made from a results store; opens without a server or a network."""

from __future__ import annotations

import math
import shlex
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from panbench import __version__
from panbench.errors import UserError
from panbench.protocol import Protocol
from panbench.protocol.protocol import protocol_ids
from panbench.protocol.results import BenchCell, SceneResult
from panbench.protocol.store import StoredResult
from panbench.report.board_tables import (
    COST,
    IMAGE,
    MEASURED,
    SCORES,
    TRAINING_FREE,
    VERIFIED,
    class_table,
    confusion_table,
    leaderboard,
    matrix,
    paper_table,
    plan_table,
    scene_table,
    study_samples,
    verdict_table,
)
from panbench.report.boards import (
    Board,
    Gathered,
    gather,
    is_training_free,
    masks_in_words,
    slug,
    value,
)
from panbench.report.charts import COLORS, Axis, Point, Series, lines, scatter
from panbench.report.gallery import PicturedRun, comparison, take_pictures
from panbench.report.paper import paper
from panbench.report.plans import PlanOutline
from panbench.report.statistics import summarise
from panbench.report.tables import Cell, Column, Row, Section, Table, csv_text, heading, latex, markdown
from panbench.training.files import write_text

MARKER = ".panbench-report"
_AXES = {"gaussians": "the number of Gaussians", "fit_seconds": "training time", "peak_memory_bytes": "peak memory"}
_LONG = {"gaussians": "Number of Gaussians", "fit_seconds": "Training time", "peak_memory_bytes": "Peak memory"}
_STATIC = ("site.css", "site.js", "theme.js")


@dataclass(frozen=True)
class Chart:
    """A drawing and the table of its figures."""

    svg: Markup
    table: Table


@dataclass(frozen=True, eq=False)
class Study:
    """One study on one data set under one protocol."""

    plan: PlanOutline
    axis: str
    title: str
    charts: tuple[Chart, ...]
    note: str


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that the pages show, without pictures."""

    results: tuple[StoredResult, ...]
    gathered: Gathered
    boards: tuple[BoardPage, ...]
    plans: tuple[PlanPage, ...]
    paper: tuple[Table, ...]
    held: Table | None
    repeats: Table | None

    def tables(self) -> list[Table]:
        """All tables, each once."""
        out = [t for page in self.boards for t in page.tables()]
        out += [t for page in self.plans for t in page.tables()]
        out += [*self.paper, *(t for t in (self.held, self.repeats) if t is not None)]
        return list({table.slug: table for table in out}.values())


@dataclass(frozen=True, eq=False)
class BoardPage:
    """A board and all that is shown of it."""

    board: Board
    leaderboard: Table
    scenes: tuple[tuple[str, Table], ...]
    classes: tuple[tuple[str, Table], ...]
    instances: Table
    matrices: tuple[tuple[str, tuple[tuple[str, Table], ...]], ...]
    charts: tuple[Chart, ...]
    ground: Table

    def tables(self) -> list[Table]:
        """All tables of the page."""
        crossed = [table for _, group in self.matrices for _, table in group]
        return [
            self.leaderboard,
            *(t for _, t in self.scenes),
            *(t for _, t in self.classes),
            self.instances,
            *crossed,
            *(c.table for c in self.charts),
            self.ground,
        ]


@dataclass(frozen=True, eq=False)
class PlanPage:
    """A plan: the boards of its own results, its tables, its crossed bases and heads, its study."""

    plan: PlanOutline
    boards: tuple[Board, ...]
    main: tuple[Table, ...]
    matrices: tuple[tuple[str, tuple[tuple[str, Table], ...]], ...]
    studies: tuple[Study, ...]

    @property
    def file(self) -> str:
        """Name of the page."""
        return f"plan-{slug(self.plan.name)}.html"

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        if self.studies:
            return f"study of {self.studies[0].axis}"
        rows = {row.name for table in self.main for row in table.sections[0].rows} if self.main else set[str]()
        mirror = f", mirrors the paper's Table {self.plan.table}" if self.plan.table else ""
        return f"{len(rows)} {'method' if len(rows) == 1 else 'methods'}{mirror}"

    def tables(self) -> list[Table]:
        """All tables of the page."""
        crossed = [table for _, group in self.matrices for _, table in group]
        return [*self.main, *crossed, *(c.table for study in self.studies for c in study.charts)]


def compile_report(results: Iterable[StoredResult], plans: Sequence[PlanOutline]) -> Report:
    """Sort results and make every table and chart.

    Args:
        results: of a store.
        plans: outlines of plan files; plans that only results name are shown as far as those tell.
    """
    stored = tuple(results)
    places = _places(stored)
    plain = [s for s in stored if any(not variant for _, variant in places[s.hash])]
    gathered = gather(plain)
    known = {plan.name: plan for plan in plans}
    named = sorted({plan for where in places.values() for plan, _ in where if plan} - set(known))
    outlines = [*plans, *(PlanOutline(name) for name in named)]
    return Report(
        results=stored,
        gathered=gathered,
        boards=tuple(_board_page(board) for board in gathered.boards),
        plans=tuple(_plan_page(plan, stored, places) for plan in outlines),
        paper=tuple(paper_table(n, d) for n, t in paper().tables.items() for d in t.datasets),
        held=_held_table(gathered),
        repeats=_repeats_table(gathered),
    )


def write_tables(report: Report, folder: Path) -> list[Path]:
    """Write every table as Markdown, CSV and LaTeX; returns the files."""
    out: list[Path] = []
    for table in report.tables():
        for ending, text in (("md", markdown), ("csv", csv_text), ("tex", latex)):
            path = folder / f"{table.slug}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(table), encoding="utf-8")
            out.append(path)
    return out


def write_site(report: Report, out: Path, runs: Path, store: Path) -> Path:
    """Write the site; an earlier site of ours in its place is replaced once the new one is complete.

    Args:
        report: what to show.
        out: folder of the site.
        runs: folder of run directories, for pictures of runs that have moved.
        store: for the commands that name files of it.

    Raises:
        UserError: if ``out`` holds something else than a site.
    """
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there, and no report of panbench: choose another folder with --out")
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_tables(report, part / "tables")
    static = files("panbench.report") / "static"
    (part / "static").mkdir()
    for name in _STATIC:
        (part / "static" / name).write_bytes((static / name).read_bytes())
    names = {s.hash: e.name for board in report.gathered.boards for e in board.entries for s in e.all()}
    pictured = take_pictures(((names[s.hash], s) for s in report.results if s.hash in names), runs, part)
    _write_pages(report, pictured, part, store)
    (part / MARKER).write_text(f"{__version__}\n", encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    part.rename(out)
    return out / "index.html"


def _write_pages(report: Report, pictured: list[PicturedRun], folder: Path, store: Path) -> None:
    environment = Environment(
        loader=PackageLoader("panbench.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared: dict[str, Any] = {
        "report": report,
        "version": __version__,
        "signed": _signed,
        "isnan": math.isnan,
        "paper_title": paper().title,
        "paper_authors": paper().authors,
    }
    pages: list[tuple[str, str, dict[str, Any]]] = [
        ("index.html", "index.html", {"overview": _overview(report), "facts": _facts(report.results)}),
        *((f"{p.board.slug}.html", "board.html", {"page": p}) for p in report.boards),
        *((p.file, "plan.html", {"page": p}) for p in report.plans),
        ("plans.html", "plans.html", {}),
        ("results.html", "results.html", {"records": _records(report, store)}),
        ("compare.html", "compare.html", {"grounds": comparison(pictured)}),
        ("instances.html", "instances.html", {"runs": [run for run in pictured if run.crops]}),
        ("apart.html", "apart.html", {}),
        ("reading.html", "reading.html", {"protocols": [Protocol.load(name) for name in protocol_ids()]}),
        ("paper.html", "paper.html", {}),
    ]
    for name, template, context in pages:
        text = environment.get_template(template).render(here=name, **shared, **context)
        write_text(folder / name, text)


def _places(results: Sequence[StoredResult]) -> dict[str, set[tuple[str, str]]]:
    """(plan, study point) of every result, ("", "") outside of plans. Training-free rows are where their run is."""
    runs: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for stored in results:
        result = stored.result
        if not is_training_free(result) and result.origin.run:
            runs[result.origin.run].add(_place(result.bench))
    return {
        stored.hash: {_place(stored.result.bench)}
        if stored.result.bench is not None or not is_training_free(stored.result)
        else runs.get(stored.result.origin.run) or {("", "")}
        for stored in results
    }


def _place(cell: BenchCell | None) -> tuple[str, str]:
    return ("", "") if cell is None else (cell.plan, cell.variant)


def _plan_name(result: SceneResult) -> str:
    """The plan's name of a result's method; training-free rows keep their own."""
    return result.method if result.bench is None or is_training_free(result) else result.bench.method


def _board_page(board: Board) -> BoardPage:
    plans = sorted({s.result.bench.plan for e in board.entries for s in e.all() if s.result.bench is not None})
    classes = [(metric, class_table(board, key)) for metric, key in (("PQ", "PQ"), ("IoU", "iou"))]
    classes.append(("confusion", confusion_table(board)))
    return BoardPage(
        board=board,
        leaderboard=leaderboard(board),
        scenes=tuple((c.title, scene_table(board, c)) for c in _with_values(board, (*SCORES, *IMAGE, *COST))),
        classes=tuple((title, table) for title, table in classes if table is not None),
        instances=verdict_table(board),
        matrices=_crossed(board, plans),
        charts=(*_quality_charts(board), *_growth_charts(board)),
        ground=_ground_table(board),
    )


def _crossed(board: Board, plans: Sequence[str]) -> tuple[tuple[str, tuple[tuple[str, Table], ...]], ...]:
    out = []
    for plan in plans:
        group = [(c.title, matrix(board, plan, c)) for c in _with_values(board, MEASURED)]
        found = tuple((title, table) for title, table in group if table is not None)
        if found:
            out.append((plan, found))
    return tuple(out)


def _with_values(board: Board, columns: Sequence[Column]) -> list[Column]:
    results = [stored.result for entry in board.entries for stored in entry.all()]
    return [c for c in columns if any(not math.isnan(value(r, c.key)) for r in results)]


def _plan_page(plan: PlanOutline, results: Sequence[StoredResult], places: dict[str, set[tuple[str, str]]]) -> PlanPage:
    mine = [s for s in results if any(name == plan.name for name, _ in places[s.hash])]
    plain = gather([s for s in mine if (plan.name, "") in places[s.hash]], _plan_name).boards
    studied = any(variant for s in mine for name, variant in places[s.hash] if name == plan.name)
    main = tuple(plan_table(plan, board) for board in plain)
    if not main and not studied:
        main = (plan_table(plan, None),)
    crossed = tuple(group for board in plain for group in _crossed(board, [plan.name]))
    return PlanPage(plan, plain, main, crossed, _studies(plan, mine, places) if studied else ())


def _studies(
    plan: PlanOutline, results: Sequence[StoredResult], places: dict[str, set[tuple[str, str]]]
) -> tuple[Study, ...]:
    """Curves over the points of a study, a study for each data set and protocol."""
    cells = [s.result.bench for s in results if s.result.bench is not None and s.result.bench.variant]
    points = {cell.variant: cell for cell in sorted(cells, key=lambda c: -c.order)}
    order = sorted(points, key=lambda variant: (points[variant].order, variant))
    axis = plan.axis or next((cell.axis for cell in cells if cell.axis), "") or "study point"
    values = [points[variant].x for variant in order]
    numbers = [float(x) for x in values if isinstance(x, (int, float))]
    numeric = len(numbers) == len(values) and len(set(numbers)) == len(numbers)
    boards: dict[tuple[str, bool, str, str], dict[int, Board]] = defaultdict(dict)
    for i, variant in enumerate(order):
        here = [s for s in results if (plan.name, variant) in places[s.hash]]
        for board in gather(here, _plan_name).boards:
            key = board.key[:4]
            # A point has one mask set; should it have several, the one with most methods is drawn.
            if i not in boards[key] or len(boards[key][i].entries) < len(board.entries):
                boards[key][i] = board
    out: list[Study] = []
    for _, by_point in sorted(boards.items()):
        first = next(iter(by_point.values()))
        title = f"{first.data}, {first.key.protocol}"
        spaced = numeric and min(numbers) > 0 and max(numbers) / min(numbers) >= 16
        names = () if numeric else tuple(str(v) for v in values)
        x = Axis(axis, log=spaced, names=names, ticks=tuple(numbers) if numeric and len(numbers) <= 8 else ())
        charts = []
        for column in (SCORES[0], SCORES[3], SCORES[5], *IMAGE[:1], *COST):
            chart = _study_chart(plan, title, by_point, column, x, numbers if numeric else [], order, values)
            charts += [] if chart is None else [chart]
        out.append(Study(plan, axis, title, tuple(charts), _study_note(by_point)))
    return tuple(out)


def _study_chart(
    plan: PlanOutline,
    title: str,
    points: dict[int, Board],
    column: Column,
    x: Axis,
    numbers: Sequence[float],
    order: Sequence[str],
    values: Sequence[object],
) -> Chart | None:
    samples = study_samples(points, column.key)
    wanted = [m.name for m in plan.methods if m.name in samples]
    names = [*wanted, *sorted(set(samples) - set(wanted))]
    series, rows = [], []
    for i, name in enumerate(names):
        known = {at: s for at, s in sorted(samples[name].items()) if not math.isnan(s.mean)}
        cells = tuple(
            Cell(
                known[at].mean * column.scale, spread=known[at].sd * column.scale, n=known[at].seeds * known[at].scenes
            )
            if at in known
            else Cell()
            for at in range(len(order))
        )
        if known:
            dots = [
                Point(numbers[at] if numbers else at, s.mean * column.scale, s.sd * column.scale)
                for at, s in known.items()
            ]
            series.append(Series(name, tuple(dots), i % COLORS))
            rows.append(Row(name, cells, key=name))
    if not series:
        return None
    columns = tuple(
        replace(column, key=slug(f"{variant}"), title=str(v), unit="", help="")
        for variant, v in zip(order, values, strict=True)
    )
    what = _LONG.get(column.key, column.title)
    caption = f"{what} against {x.title}: {plan.title or plan.name}, {title}"
    table = Table(
        f"study-{slug(plan.name)}-{slug(title)}-{slug(column.key)}",
        caption,
        "Method",
        columns,
        (Section("", tuple(rows)),),
    )
    drawn = lines(series, x, Axis(heading(column)), title=caption, description=_described(series, column))
    return Chart(Markup(drawn), table)


def _study_note(points: dict[int, Board]) -> str:
    scenes = sorted({scene for board in points.values() for scene in board.scenes})
    seeds = {
        len(seeds) for b in points.values() for e in b.entries if not e.training_free for seeds in e.results.values()
    }
    many = f"{min(seeds)} to {max(seeds)} seeds" if len(seeds) > 1 else f"{next(iter(seeds), 0)} seeds"
    return (
        f"Mean over {many} and {len(scenes)} {'scene' if len(scenes) == 1 else 'scenes'}; bars are the standard "
        "deviation over seeds. A method is drawn where it has all scenes of the point."
    )


def _described(series: Sequence[Series], column: Column) -> str:
    parts = [f"{s.name} from {column.show(s.points[0].y)} to {column.show(s.points[-1].y)}" for s in series if s.points]
    return "; ".join(parts[:8]) + "."


def _colored(board: Board) -> list[tuple[int, Any]]:
    """Entries in one order with a colour each, the same in all charts of a board."""
    ordered = sorted(board.entries, key=lambda e: (e.training_free, e.name))
    return [(i % COLORS, entry) for i, entry in enumerate(ordered)]


def _quality_charts(board: Board) -> list[Chart]:
    """PQ against what it cost, a point a method."""
    out: list[Chart] = []
    quality = SCORES[0]
    for cost in COST:
        series, rows = [], []
        for color, entry in _colored(board):
            scenes = board.defined_scenes("PQ")
            y = summarise(entry.samples("PQ", scenes), board.rule)
            x = summarise(entry.samples(cost.key, scenes), "mean").mean * cost.scale
            if board.complete(entry) and not math.isnan(x) and not math.isnan(y.mean) and x > 0:
                series.append(Series(entry.name, (Point(x, y.mean, y.sd),), color))
                rows.append(Row(entry.name, (Cell(x), Cell(y.mean, spread=y.sd)), key=entry.key))
        if len(series) < 2:
            continue
        caption = f"PQ against {_AXES[cost.key]}: {board.title}"
        table = Table(
            f"{board.slug}-quality-{slug(cost.key)}", caption, "Method", (cost, quality), (Section("", tuple(rows)),)
        )
        xs = [p.x for s in series for p in s.points]
        x_axis = Axis(heading(cost), log=max(xs) / min(xs) >= 8)
        description = "; ".join(f"{s.name}: {quality.show(s.points[0].y)}" for s in series[:8]) + "."
        drawn = scatter(series, x_axis, Axis("PQ"), title=caption, description=description)
        out.append(Chart(Markup(drawn), table))
    return out


def _growth_charts(board: Board) -> list[Chart]:
    """Memory and time against the number of Gaussians, a line a method through its scenes."""
    out: list[Chart] = []
    number = COST[0]
    for cost in COST[1:]:
        series: list[Series] = []
        rows: list[Row] = []
        for color, entry in _colored(board):
            dots = []
            for scene in board.scenes:
                x, y = (summarise(entry.samples(c.key, [scene]), "mean").mean * c.scale for c in (number, cost))
                if not math.isnan(x) and not math.isnan(y):
                    dots.append(Point(x, y))
                    rows.append(Row(f"{entry.name}, {scene}", (Cell(x), Cell(y)), key=f"{entry.key}/{scene}"))
            if dots:
                series.append(Series(entry.name, tuple(sorted(dots, key=lambda p: p.x)), color))
        if len({p.x for s in series for p in s.points}) < 2:
            continue
        caption = f"{_LONG[cost.key]} against {_AXES[number.key]}: {board.title}"
        table = Table(
            f"{board.slug}-growth-{slug(cost.key)}",
            caption,
            "Method, scene",
            (number, cost),
            (Section("", tuple(rows)),),
        )
        axes = Axis(heading(number)), Axis(heading(cost))
        drawn = lines(series, *axes, title=caption, description=_described(series, cost))
        out.append(Chart(Markup(drawn), table))
    return out


def _ground_table(board: Board) -> Table:
    """What the results of each scene share."""
    columns = tuple(
        Column(key, title, None, "", help=text)
        for key, title, text in (
            ("frames", "Test frames", ""),
            ("size", "Counted at", "Width × height at which pixels are counted."),
            ("split", "Split", "Hash over the names of the test frames."),
            ("labels", "Label space", "Hash of the label space."),
            ("masks", "Masks", "Hash of the pseudo-masks."),
            ("data", "Data", "Hash of the scene's files."),
        )
    )
    rows = []
    for scene in board.scenes:
        results = [s.result for e in board.entries for s in e.results.get(scene, {}).values()]
        r = next((r for r in results if r.labels == "shared"), results[0])
        height, width = r.image_size
        texts = (
            str(len(r.frames)),
            f"{width} × {height}",
            r.split_hash[:8],
            r.label_hash[:8],
            r.origin.mask_hash[:8] or "unknown",
            r.origin.data_hash[:8] or "unknown",
        )
        rows.append(Row(scene, tuple(Cell(text=text) for text in texts), key=scene))
    note = f"{board.key.protocol}: rules {board.key.protocol_hash[:16]}."
    return Table(
        f"{board.slug}-ground",
        f"What is compared: {board.title}",
        "Scene",
        columns,
        (Section("", tuple(rows)),),
        (note,),
    )


def _overview(report: Report) -> list[dict[str, Any]]:
    """A line for each board: what it is, and who leads."""
    out = []
    for page in report.boards:
        rows = [r for s in page.leaderboard.sections if s.title in ("", VERIFIED) for r in s.rows if r.rank is not None]
        free = [r for s in page.leaderboard.sections if s.title == TRAINING_FREE for r in s.rows]
        methods = sum(not entry.training_free for entry in page.board.entries)
        out.append({"page": page, "leaders": rows[:2], "free": free[:1], "methods": methods})
    return sorted(out, key=lambda line: (line["page"].board.key.synthetic, -line["methods"]))


def _facts(results: Sequence[StoredResult]) -> dict[str, Any]:
    made = sorted(s.result.origin.created for s in results if s.result.origin.created)
    return {
        "results": len(results),
        "methods": len({s.result.method for s in results}),
        "scenes": len({(s.result.dataset, s.result.scene) for s in results}),
        "synthetic": sum(s.result.synthetic for s in results),
        "first": made[0][:10] if made else "",
        "last": made[-1][:10] if made else "",
        "trust": Counter(s.result.origin.trust for s in results),
    }


def _records(report: Report, store: Path) -> list[dict[str, Any]]:
    """Every result with what is needed to make it again."""
    names = {s.hash: e.name for board in report.gathered.boards for e in board.entries for s in e.all()}
    held = {h.stored.hash for h in report.gathered.held}
    out = []
    for stored in report.results:
        r = stored.result
        path = store / stored.path.relative_to(store) if stored.path.is_relative_to(store) else stored.path
        status = "counts" if stored.hash in names else "held apart" if stored.hash in held else "repeat"
        if r.bench is not None and r.bench.variant and stored.hash not in names:
            status = f"study {r.bench.plan}"
        out.append(
            {
                "hash": stored.hash[:12],
                "name": names.get(stored.hash, r.method),
                "result": r,
                "masks": masks_in_words("own" if r.labels == "own" else r.origin.masks),
                "status": status,
                "command": shlex.join(r.origin.command),
                "reproduce": shlex.join(["panbench", "reproduce", str(path)]) if r.origin.trust == "verified" else "",
                "run": "/".join(Path(r.origin.run).parts[-4:]),
                "backend": str(r.provenance.get("backend") or ""),
            }
        )
    return sorted(out, key=lambda d: (d["result"].scene, d["result"].protocol, d["name"], d["result"].seed or -1))


def _held_table(gathered: Gathered) -> Table | None:
    columns = tuple(
        Column(key, title, None, "")
        for key, title in (
            ("scene", "Scene"),
            ("seed", "Seed"),
            ("board", "Would stand in"),
            ("reason", "Reason"),
            ("hash", "Result"),
        )
    )
    rows = []
    for item in gathered.held:
        r = item.stored.result
        where = f"{item.board.dataset}, {item.board.protocol}, {masks_in_words(item.board.masks)}"
        texts = (r.scene, _seed(r), where, "; ".join(item.reasons), item.stored.hash[:12])
        cells = [Cell(text=text) for text in texts]
        cells[-1] = replace(cells[-1], href=f"results.html#r-{item.stored.hash[:12]}")
        rows.append(Row(r.method, tuple(cells), "submitted" if r.origin.trust == "submitted" else "verified"))
    if not rows:
        return None
    return Table("held-apart", "Results held apart", "Method", columns, (Section("", tuple(rows)),))


def _repeats_table(gathered: Gathered) -> Table | None:
    """Run-to-run noise: the same method, settings, scene and seed, run more than once."""
    columns = (
        Column("scene", "Scene", None, ""),
        Column("seed", "Seed", None, ""),
        Column("protocol", "Protocol", None, ""),
        Column("runs", "Runs", 0, ""),
        *(replace(c, better="", title=f"{c.title} range", key=f"{c.key}_range", digits=2) for c in SCORES),
    )
    rows = []
    for item in gathered.repeats:
        r = item.kept.result
        results = [r, *(other.result for other in item.others)]
        ranges = [[value(x, c.key) for x in results if not math.isnan(value(x, c.key))] for c in SCORES]
        cells = (
            Cell(text=r.scene, href=f"results.html#r-{item.kept.hash[:12]}"),
            Cell(text=_seed(r)),
            Cell(text=r.protocol),
            Cell(float(len(results))),
            *(Cell(max(known) - min(known)) if known else Cell() for known in ranges),
        )
        rows.append(Row(r.method, cells))
    if not rows:
        return None
    note = "Largest minus smallest score of runs that differ in nothing: the noise of a run. The newest counts."
    return Table("repeats", "Repeated runs", "Method", columns, (Section("", tuple(rows)),), (note,))


def _seed(result: SceneResult) -> str:
    return "none" if result.seed is None else str(result.seed)


def _signed(number: float, digits: int) -> str:
    """A difference with its sign, the minus as a minus."""
    text = f"{number:+.{digits}f}"
    return "±0" if not float(text) else text.replace("-", "−")
