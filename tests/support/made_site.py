"""A store of made-up results of every kind, and the site that ``panbench report`` makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from panbench.cli.report import main
from panbench.protocol.store import ResultStore
from results import PAPER, STRICT, cell, crossed, grid, result, study, write_pictures

PLAN = {
    "name": "table1",
    "title": "Table I on the rooms",
    "description": "The paper's methods.",
    "methods": [
        {"name": "OpenGaussian", "unavailable": "baseline not built yet", "paper": "OpenGaussian"},
        {"name": "ours-on-ligs", "paper": "Ours"},
        {"name": "new idea"},
    ],
    "scenes": [{"name": "room0"}],
    "paper": {"table": "I", "dataset": "scannet"},
}


@dataclass(frozen=True)
class Made:
    """Where everything is."""

    folder: Path
    store: Path
    site: Path
    runs: Path

    @property
    def arguments(self) -> list[str]:
        """The command line of the site, but for ``--out``."""
        return ["--store", str(self.store), "--runs", str(self.runs), "--bench", str(self.folder / "bench")]


def make_site(folder: Path) -> Made:
    """A site of many scenes and seeds, bases and heads, a study, a plan, odd ones and pictures."""
    store, runs = ResultStore(folder / "results"), folder / "runs"
    for item in grid({"ligs-query": 72.0, "3dgs-query": 71.8, "ligs-vote": 64.0}, protocols=(PAPER, STRICT)):
        store.add(item)
    for item in crossed(
        "matrix", {"3dgs": 30.0, "ligs": 33.0}, {"query": 40.0, "blend": 31.0}, leave_out=[("3dgs", "blend")]
    ):
        store.add(item)
    for i in range(3):
        place = cell("table1", "ours-on-ligs", f"room{i}")
        store.add(result("ligs-query", f"room{i}", 0, pq=73.0, settings="t1", bench=place, run=f"/t1/{i}"))
        store.add(result("<script>alert(1)</script>", f"room{i}", 0, pq=50.0 + i, trust="submitted"))
    noise = {"clean": {"a": 88.0, "b": 87.0}, "light": {"a": 80.0, "b": 79.0}, "heavy": {"a": 60.0, "b": 62.0}}
    for item in study("noise", "mask noise", noise):
        store.add(item)
    store.add(result("only-here", "room0", pq=90.0))
    store.add(result("odd-size", "room0", image_size=(120, 160)))
    store.add(result("ligs-query", "room0", 0, pq=71.0, created="2026-11-01T00:00:00+00:00", run="/again"))
    for method, seed, shade in (("ligs-query", 0, 60), ("3dgs-query", 0, 120)):
        run = Path(result(method, "room0", seed).origin.run)
        write_pictures(runs.joinpath(*run.parts[-4:]) / "pictures", shade)
        if method == "ligs-query":
            write_pictures(runs.joinpath(*run.parts[-4:]) / "anchors" / "voxel-vote" / "pictures", 200)
    (folder / "bench" / "table1").mkdir(parents=True)
    (folder / "bench" / "table1" / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    site = folder / "site"
    made = Made(folder, store.folder, site, runs)
    assert main([*made.arguments, "--out", str(site)]) == 0
    return made
