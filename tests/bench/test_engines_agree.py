from __future__ import annotations

import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from panbench.protocol.store import ResultStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # Not imported here: Ray reads its settings as it is imported, and other tests make them first.
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'panbench[ray]'"),
]


def scores(store: Path) -> dict[tuple[object, ...], tuple[object, ...]]:
    found = [s.result for s in ResultStore(store)]
    return {(r.method, r.scene, r.seed, r.protocol): (r.metrics, r.counts, r.instances) for r in found}


def test_one_plan_gives_the_same_results_on_this_machine_and_on_ray(
    place: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    for name, options in {"here": ("--workers", "2"), "there": ("--engine", "ray")}.items():
        process = start(*options, "--store", name, "--folder", f"bench_{name}")
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    assert len(scores(place / "here")) == 3
    assert scores(place / "here") == scores(place / "there")
