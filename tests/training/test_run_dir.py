"""A run's folder: what names it, what it says, who may use it."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panbench.errors import UserError
from panbench.training.run_dir import RunDirectory, RunManifest, differences, environment, tracked_hash


def _manifest(**changes: object) -> RunManifest:
    fields = {"dataset": "d", "scene": "s", "method": "m", "seed": 0, "tracked": {"lr": 0.1}, "hash": "h"}
    return RunManifest.model_validate(fields | changes)


def test_a_manifest_comes_back_equal(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    manifest = _manifest(status="trained", cost={"fit_seconds": 3.5}, **environment())
    run.write_manifest(manifest)
    assert run.manifest() == manifest


def test_a_manifest_does_not_name_the_hosts_kernel() -> None:
    assert environment()["machine"]["system"] == f"{platform.system()} {platform.machine()}"
    assert platform.release() not in json.dumps(environment()["machine"])


def test_a_damaged_manifest_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        RunDirectory(tmp_path).manifest()


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    assert not RunDirectory(tmp_path).exists()
    with pytest.raises(UserError, match="is not a run directory"):
        RunDirectory(tmp_path).manifest()


_TREES = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(min_size=1, max_size=4), _TREES, max_size=5))
def test_the_hash_does_not_depend_on_the_order_of_keys(tree: dict[str, object]) -> None:
    assert tracked_hash(tree) == tracked_hash(dict(reversed(tree.items())))
    assert differences(tree, tree) == []


def test_differences_name_the_leaf() -> None:
    before = {"model": {"lr": 0.1, "head": {"n": 3}}, "seed": 0}
    after = {"model": {"lr": 0.2, "head": {"n": 3, "m": 1}}, "seed": 0}
    assert differences(before, after) == ["model.head.m: - -> 1", "model.lr: 0.1 -> 0.2"]


def test_the_earlier_run_is_the_newest_of_the_same_seed(tmp_path: Path) -> None:
    for i, name in enumerate(("s0-aaaa", "s0-bbbb", "s1-cccc")):
        run = RunDirectory(tmp_path / name)
        run.create()
        run.write_manifest(_manifest(seed=i))
        time.sleep(0.02)
    earlier = RunDirectory(tmp_path / "s0-dddd").earlier(0)
    assert earlier is not None
    assert earlier.path.name == "s0-bbbb"
    assert RunDirectory(tmp_path / "s2-eeee").earlier(2) is None


def test_a_lock_is_free_again_after_use_and_after_an_error(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(ZeroDivisionError), run.locked():
        _ = 1 / 0
    with run.locked(), pytest.raises(UserError, match="is already working in"), RunDirectory(tmp_path).locked():
        pass
