"""The site as files: every page, every table, nothing from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_site import Made

from panbench.cli.report import main
from panbench.errors import UserError
from panbench.protocol.store import ResultStore, StoredResult
from panbench.report.gallery import comparison, find_pictures, take_pictures
from results import result, study, write_pictures


class _Links(HTMLParser):
    """All links, ids, and images without words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.silent: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        self.links += [v for k in ("href", "src") if (v := facts.get(k)) and not v.startswith("data:")]
        if facts.get("id"):
            self.ids.add(str(facts["id"]))
        if tag == "img" and "alt" not in facts:
            self.silent.append(str(facts))


def _pages(made: Made) -> dict[str, _Links]:
    return {path.name: _Links(path) for path in sorted(made.site.glob("*.html"))}


def test_every_link_leads_somewhere_inside_the_site(made: Made) -> None:
    pages = _pages(made)
    assert {"index.html", "plans.html", "plan-table1.html", "plan-noise.html", "results.html", "apart.html"} <= set(
        pages
    )
    for name, page in pages.items():
        for link in page.links:
            file, _, anchor = link.partition("#")
            assert not re.match(r"[a-z]+:|//", file), (name, link)
            target = made.site / (file or name)
            assert target.is_file(), (name, link)
            assert not anchor or anchor in pages[target.name].ids, (name, link)
        assert not page.silent


def test_names_of_methods_are_text_and_never_markup(made: Made) -> None:
    for path in made.site.glob("*.html"):
        assert "<script>alert" not in path.read_text(encoding="utf-8")


def test_every_table_of_the_pages_is_there_in_three_formats(made: Made) -> None:
    files = {path.name for path in (made.site / "tables").iterdir()}
    stems = {name.rpartition(".")[0] for name in files}
    assert files == {f"{stem}.{ending}" for stem in stems for ending in ("md", "csv", "tex")}
    board = "scannet-synthetic-scannet-paper-1-medium"
    for part in (
        "leaderboard",
        "scenes-pq",
        "classes-iou",
        "instances",
        "matrix-matrix-pq",
        "quality-fit-seconds",
        "ground",
    ):
        assert f"{board}-{part}" in stems
    assert {"paper-i-scannet", "paper-i-scannetpp", "paper-iv-scannet", "held-apart", "repeats"} <= stems
    assert f"plan-table1-{board}" in stems
    assert any(stem.startswith("study-noise-") for stem in stems)


def test_a_plan_shows_what_was_not_run_beside_the_paper_s_figures(made: Made) -> None:
    text = (made.site / "tables" / "plan-table1-scannet-synthetic-scannet-paper-1-medium.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert rows[0].startswith("| *OpenGaussian (not run: baseline not built yet; the paper's figures)* | *48.73* |")
    assert rows[1].startswith("| ours-on-ligs | 73.0")
    assert rows[2].startswith("| *ours-on-ligs (Ours in the paper)* | *74.75* |")
    assert rows[3].startswith("| new idea (not run) | – |")


def test_results_of_studies_stay_off_the_leaderboards(made: Made) -> None:
    text = (made.site / "tables" / "scannet-synthetic-scannet-paper-1-medium-leaderboard.csv").read_text()
    assert "ligs-query" in text
    assert not re.search(r",[ab],verified", text)
    assert not list(made.site.glob("*clean.html"))
    assert "mask noise" in (made.site / "plan-noise.html").read_text()


def test_every_result_has_its_command(made: Made) -> None:
    text = (made.site / "results.html").read_text()
    assert text.count('<tr id="r-') == len(ResultStore(made.store).paths())
    assert "panbench fit --config configs/ligs-query.yaml --seed_everything 0" in text
    assert "panbench reproduce " in text


def test_held_apart_and_repeats_have_their_page(made: Made) -> None:
    text = (made.site / "apart.html").read_text()
    assert "image size: 160x120 and 320x240" in text
    assert "odd-size" in text
    repeats = (made.site / "tables" / "repeats.csv").read_text().splitlines()
    assert any("ligs-query" in line for line in repeats[1:])


def test_nothing_of_this_machine_s_folders_is_told(made: Made) -> None:
    for path in made.site.rglob("*.html"):
        assert "/elsewhere" not in path.read_text(encoding="utf-8")


def test_the_same_store_makes_the_same_site(made: Made, tmp_path: Path) -> None:
    main([*made.arguments, "--out", str(tmp_path / "again")])
    one, two = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (made.site, tmp_path / "again")
    )
    assert one == two


def test_a_new_site_takes_the_place_of_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ResultStore(tmp_path / "results")
    store.add(result(masks="clean"))
    command = ["--store", str(store.folder), "--out", str(tmp_path / "site"), "--bench", str(tmp_path / "none")]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "site" / "index.html")
    for path in store.paths():
        path.unlink()
    store.add(result(masks="heavy"))
    assert main(command) == 0
    boards = {path.name for path in (tmp_path / "site").glob("scannet-*.html")}
    assert boards == {"scannet-synthetic-scannet-paper-1-heavy.html"}


def test_a_folder_that_is_no_site_is_left_alone(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    store.add(result())
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no report of panbench: choose another folder with --out"):
        main(["--store", str(store.folder), "--out", str(tmp_path / "precious")])
    assert (tmp_path / "precious" / "thesis.tex").read_text() == "years of work"


def test_without_a_store_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder: give the results store as --store FOLDER"):
        main(["--store", str(tmp_path / "none")])


def test_an_empty_store_makes_a_site_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert main(["--store", str(tmp_path / "results"), "--out", str(tmp_path / "site")]) == 0
    assert "holds no results yet" in (tmp_path / "site" / "index.html").read_text()
    assert "no pictures here" in (tmp_path / "site" / "compare.html").read_text()


def test_a_store_of_one_study_leads_to_its_curves(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    for item in study("views", "views", {5: {"a": 50.0}, 40: {"a": 70.0}}):
        store.add(item)
    assert main(["--store", str(store.folder), "--out", str(tmp_path / "site"), "--bench", str(tmp_path / "none")]) == 0
    index = (tmp_path / "site" / "index.html").read_text()
    assert "holds no results" not in index
    assert "plan-views.html" in index
    assert "<polyline" in (tmp_path / "site" / "plan-views.html").read_text()


def test_tables_alone_go_where_they_are_wanted(made: Made, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "mine.md").write_text("kept")
    assert main([*made.arguments, "--tables-only", "--out", str(tmp_path / "docs")]) == 0
    written = {path.name: path.read_text() for path in (tmp_path / "docs").iterdir()}
    assert written.pop("mine.md") == "kept"
    assert written == {path.name: path.read_text() for path in (made.site / "tables").iterdir()}


def test_a_plan_on_the_command_line_is_shown_before_anything_ran(made: Made, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    plan = str(made.folder / "bench" / "table1" / "plan.yaml")
    assert main(["--store", str(tmp_path / "results"), "--out", str(tmp_path / "site"), "--plan", plan]) == 0
    assert "not run: baseline not built yet" in (tmp_path / "site" / "plan-table1.html").read_text()


def _stored(method: str, seed: int | None, run: str) -> StoredResult:
    return StoredResult("0" * 64, Path("x.json"), result(method, "room0", seed, run=run))


def test_pictures_are_found_where_the_run_was_or_where_it_is_now(tmp_path: Path) -> None:
    here = tmp_path / "runs" / "scannet" / "room0" / "a" / "s0-12345678"
    write_pictures(here / "pictures", 10)
    write_pictures(here / "anchors" / "voxel-vote" / "pictures", 20)
    moved = "/elsewhere/old/runs/scannet/room0/a/s0-12345678"
    for run in (str(here), moved):
        assert find_pictures(result("a", "room0", 0, run=run), tmp_path / "runs") == here / "pictures"
        vote = result("voxel-vote", "room0", None, run=run)
        assert find_pictures(vote, tmp_path / "runs") == here / "anchors" / "voxel-vote" / "pictures"
    assert find_pictures(result("a", "room0", 1, run="/elsewhere/x"), tmp_path / "runs") is None


def test_pictures_of_one_run_are_taken_once_and_the_worst_instances_come_first(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "scannet" / "room0" / "a" / "s0-12345678"
    write_pictures(run / "pictures", 10, instances=3)
    results = [("a", _stored("a", 0, str(run))), ("a", _stored("a", 0, str(run)))]
    (taken,) = take_pictures(results, tmp_path / "runs", tmp_path / "site")
    damages = [crop.damage for crop in taken.crops]
    assert damages == sorted(damages, reverse=True) == [400.0, 350 * 0.9, 300 * 0.8]
    assert all((tmp_path / "site" / path).is_file() for view in taken.views.values() for path in view.values())
    (ground,) = comparison([taken])
    assert ground["title"] == "room0, medium masks"
    assert list(ground["runs"][0]["views"]) == ["0", "40"]


def test_an_index_names_files_of_its_own_folder_only(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "scannet" / "room0" / "a" / "s0-12345678"
    write_pictures(run / "pictures", 10)
    (run / "pictures" / "secret.png").write_bytes(b"secret")
    kinds = {"photo": "../secret.png", "render": "0.render.png", "semantic": "gone.png"}
    index = {"views": [{"name": "0", "kinds": kinds}], "size": [48, 64]}
    (run / "pictures" / "views" / "index.json").write_text(json.dumps(index))
    (run / "pictures" / "instances" / "index.json").write_text("{ damaged")
    (taken,) = take_pictures([("a", _stored("a", 0, str(run)))], tmp_path / "runs", tmp_path / "site")
    assert list(taken.views["0"]) == ["render"]
    assert taken.crops == ()


def test_the_help_tells_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("--store", "--out", "--runs", "--plan", "--tables-only", "panbench report --plan"):
        assert word in text
