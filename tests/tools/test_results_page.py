"""docs/results.md from made-up stores: what a claim's difference and its noise lead to, and what the page holds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

import claims
import reference_parity
from claims import CLAIMS, Claim, verdict
from panbench.protocol.store import ResultStore
from panbench.report.paper import paper
from panbench.report.plans import PlannedMethod, PlanOutline
from panbench.report.site import compile_report
from panbench.report.statistics import Difference
from panbench.resources import asset
from results import STRICT, cell, result

PLAN = "rooms_table3_heavy"
NAMES = ("feature-blending", "label-blending", "label-blending-warping")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """``tools/results.py``; its name is taken by the made-up results of the tests."""
    path = Path(claims.__file__).with_name("results.py")
    spec = importlib.util.spec_from_file_location("results_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _store(folder: Path, scores: dict[str, float], plan: str = PLAN, **metrics: float) -> ResultStore:
    store = ResultStore(folder)
    for method, pq in scores.items():
        for scene in ("room 6", "room 7", "room 8"):
            for seed in range(3):
                place = cell(plan, method, scene)
                store.add(
                    result(method, scene, seed, pq=pq + 0.1 * seed, protocol=STRICT, bench=place, metrics=metrics)
                )
    return store


@pytest.mark.parametrize(
    ("sign", "value", "low", "high", "expected"),
    [
        (">", 1.0, 0.5, 1.5, "yes"),
        (">", 1.0, -0.5, 2.5, "not shown: in the claimed direction, inside the noise"),
        (">", -1.0, -1.5, -0.5, "**no**: the opposite"),
        ("<", -1.0, -1.5, -0.5, "yes"),
        ("<", 1.0, -0.5, 2.5, "not shown: against it, inside the noise"),
        ("=", 0.1, -0.5, 0.5, "yes: no difference beyond the noise"),
        ("=", 1.0, 0.5, 1.5, "**no**: they differ beyond the noise"),
    ],
)
def test_a_claim_holds_if_the_interval_leaves_out_zero_on_its_side(
    sign: claims.Sign, value: float, low: float, high: float, expected: str
) -> None:
    assert verdict(Claim("p", "a", sign, "b"), Difference(value, low, high, "seeds")) == expected


def test_every_claim_is_about_a_shipped_plan_a_known_metric_and_rows_of_the_paper() -> None:
    plans = {path.stem: path.read_text() for path in (asset("configs") / "bench").glob("*.yaml")}
    for claim in CLAIMS:
        assert f"name: {claim.left}," in plans[claim.plan] or f"name: {claim.left}}}" in plans[claim.plan]
        assert claim.metric in claims.COLUMNS
        if claim.paper is not None:
            number, left, right = claim.paper
            assert {left, right} <= set(paper().tables[number].datasets["scannet"])


def test_claims_are_answered_by_what_the_store_has(tmp_path: Path) -> None:
    store = _store(tmp_path / "store", dict(zip(NAMES, (60.0, 64.0, 63.0), strict=True)))
    text = claims.markdown(compile_report(store, []).plans)
    lines = {(c[2].strip(), c[3].strip()): c for c in (line.split("|") for line in text.splitlines() if PLAN in line)}
    assert {metric for _, metric in lines} == {"PQ", "mIoU"}
    held = lines["feature-blending < label-blending", "PQ"]
    assert [held[4].strip(), held[5].strip(), held[7].strip(), held[8].strip()] == [
        "60.1 ± 0.1", "64.1 ± 0.1", "-1.07", "yes",
    ]  # fmt: skip
    assert "the opposite" in lines["label-blending < label-blending-warping", "PQ"][8]


def test_nothing_is_claimed_of_plans_without_results(tmp_path: Path) -> None:
    assert claims.markdown(compile_report(ResultStore(tmp_path / "none"), []).plans) == ""


def test_the_page_has_each_plan_once_with_its_own_rows(tool: ModuleType, tmp_path: Path) -> None:
    store = _store(tmp_path / "store", {NAMES[0]: 60.0, NAMES[1]: 64.0})
    _store(tmp_path / "store", {"ligs-query": 70.0}, plan="rooms_table2", depth_l1=1.25)
    plans = [
        PlanOutline(PLAN, "Blending", methods=tuple(map(PlannedMethod, NAMES))),
        PlanOutline("rooms_table2", "Bases"),
        PlanOutline("table9", "Nothing yet", methods=(PlannedMethod("x"),)),
    ]
    page: str = tool.page([store], plans, tmp_path / "parity.json")
    titles = ["# Results", "## What was claimed, and what was measured", "## Blending", "## Bases", "## Nothing yet"]
    assert [line for line in page.splitlines() if line.startswith("#")] == titles
    blending, bases = page.split("## Blending")[1].split("## Bases")
    assert "ligs-query" not in blending
    assert "feature-blending" not in bases
    assert "Depth error (cm)" in bases
    assert "1.25" in bases
    assert "Code: " in bases
    assert "*not run*" in blending or "not run" in blending


def test_the_parity_of_back_ends_is_added_where_it_was_measured(tool: ModuleType, tmp_path: Path) -> None:
    def values(psnr: float) -> dict[str, float | None]:
        return {"PSNR": psnr, "SSIM": 0.9, "depth_l1": None, "gaussians": 100.0}

    results = {
        "machine": {"commit": "0123"},
        "settings": {"steps": 10, "size": [64, 48], "seed": 0},
        "bases": {
            "ligs": {"base": "ligs", "cpu": values(20.0), "reference": values(20.4)},
            "3dgs": {"base": "3dgs", "cpu": values(19.0), "reference": values(20.0)},
        },
    }
    file = tmp_path / "parity.json"
    file.write_text(json.dumps(results))
    page: str = tool.page([], [], file)
    assert "| ligs | 20.00 | 20.40 | -0.400 | within | – | – |" in page
    assert "| 3dgs | 19.00 | 20.00 | -1.000 | **missed** | – | – |" in page
    assert reference_parity.markdown(results) in page
