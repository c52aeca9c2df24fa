"""Rates of the noise model: put in, corrupted, found again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

from panbench.cli.main import run as main
from panbench.data.mask_noise import PRESETS, MaskNoise, MaskNoiser
from panbench.masks.corrupt import read_noise
from panbench.masks.fit_noise import FitView, NoiseFit, _runs, fit_noise
from panbench.masks.score import LabelledView
from panbench.scene import LabelClass, LabelSpace

WALL, FLOOR = 1, 2
LABELS = LabelSpace(
    "synthetic",
    (
        LabelClass(WALL, "wall", thing=False),
        LabelClass(FLOOR, "floor", thing=False),
        *(LabelClass(c, name, thing=True) for c, name in enumerate(("chair", "table", "sofa", "bed"), 3)),
    ),
)
SHAPE = (120, 160)
FRAMES = 16
# Top, height, width and number of the objects of a row; the last are below 0.3 % of the picture, the first above 2 %.
ROWS = ((4, 22, 22, 6), (32, 22, 20, 6), (62, 14, 12, 8), (84, 14, 12, 8), (106, 7, 7, 10))


def truth(seed: int, frames: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of objects that sway before a wall and a floor, in touching pairs; bars hide the middle of some."""
    kinds = np.random.default_rng(seed).integers(3, 7, 64)
    out: list[tuple[np.ndarray, np.ndarray]] = []
    for t in range(frames):
        semantic, instance = np.full(SHAPE, WALL), np.zeros(SHAPE, dtype=np.int64)
        semantic[60:] = FLOOR
        number = 0
        for top, height, width, count in ROWS:
            left = 4 + round(2 * np.sin(t / 3))
            for k in range(count):
                number += 1
                box = (slice(top, top + height), slice(left, left + width))
                semantic[box], instance[box] = kinds[(number - 1) // 2], number
                left += width + (1 if k % 2 == 0 else 6)
        for left in (31 + t % 5, 92 + t % 5):
            semantic[:60, left : left + 3], instance[:60, left : left + 3] = WALL, 0
        out.append((semantic, instance))
    return out


def fitted(noise: MaskNoise, seed: int, *, frames: int = FRAMES, associated: bool = True) -> NoiseFit:
    maps = truth(seed, frames)
    noiser = MaskNoiser(noise, LABELS, frames, 1000 + seed)
    views: list[FitView] = []
    for t, (semantic, instance) in enumerate(maps):
        made = noiser.frame(t, semantic, instance)
        views.append(FitView(t, LabelledView(str(t), made.semantic, made.instance, semantic, instance), made.score))
    return fit_noise(views, LABELS, associated=associated)


def test_rates_that_were_put_in_are_found() -> None:
    noise = MaskNoise(
        missed=(0.45, 0.25, 0.1), persistence=0.5, merged=0.3, fragment=0.5, part=0.15, confused=0.08,
        confused_always=0.15, boundary=3.0, bleeding=0.15, stuff_absent=0.2, holes=0.1, hallucinated=1.5,
        thing_score=(9.0, 5.0), stuff_score=(4.0, 9.0),
    )  # fmt: skip
    # Two to three standard deviations of the mean of three scenes of 16 frames.
    tolerance = {
        "missed": (0.09, 0.07, 0.05), "persistence": 0.15, "merged": 0.1, "fragment": 0.12, "part": 0.04,
        "confused": 0.04, "confused_always": 0.1, "boundary": 0.6, "bleeding": 0.05, "stuff_absent": 0.08,
        "holes": 0.03, "hallucinated": 0.6,
    }  # fmt: skip
    fits = [fitted(noise, seed).noise for seed in range(3)]
    for name, allowed in tolerance.items():
        found, wanted = np.mean([getattr(fit, name) for fit in fits], axis=0), getattr(noise, name)
        assert np.all(np.abs(found - wanted) < allowed), (name, found, wanted)
    for name in ("thing_score", "stuff_score"):
        wanted = getattr(noise, name)
        for moment in (beta.mean, beta.std):
            found = np.mean([moment(*getattr(fit, name)) for fit in fits])
            assert found == pytest.approx(moment(*wanted), abs=0.03), (name, found)


def test_exact_masks_have_no_errors() -> None:
    fit = fitted(PRESETS["clean"], 0, frames=3)
    rates = {k: v for k, v in vars(fit.noise).items() if k not in ("persistence", "thing_score", "stuff_score")}
    assert np.allclose(np.concatenate([np.atleast_1d(v) for v in rates.values()]), 0)
    mean = fit.noise.thing_score[0] / sum(fit.noise.thing_score)
    assert mean == pytest.approx(0.95, abs=0.01)
    assert not fit.observed["persistence"]["fitted"]
    assert fit.observed["part"]["fitted"]


def test_without_ids_over_frames_confusions_are_single_ones() -> None:
    fit = fitted(MaskNoise(confused=0.1, confused_always=0.3), 1, frames=6, associated=False)
    assert fit.noise.confused_always == 0
    # A share of 0.3 is wrong in 0.7 and more of the views.
    assert fit.noise.confused == pytest.approx(0.7 * 0.1 + 0.3 * 0.73, abs=0.12)
    assert not fit.observed["persistence"]["fitted"]


@pytest.mark.parametrize(("count", "most"), [(1000, 200), (205, 200), (30, 200), (1000, 7), (12, 11)])
def test_some_frames_are_runs_of_neighbours_spread_over_the_scene(count: int, most: int) -> None:
    places = _runs(count, most)
    assert len(places) == len(set(places)) <= min(count, most)
    assert 0 <= places[0] <= places[-1] < count
    if most >= 20:
        steps = np.diff(places)
        assert (steps == 1).mean() >= 0.89
        assert places[-1] - places[0] > 0.9 * count
    assert places == sorted(places)


# ------------------------------------------------------------------------------------------------------------- the room


def fit(room: Path, masks: str, out: Path, *more: str) -> int:
    return main(["masks", "fit-noise", str(room), "--masks", masks, "--out", str(out), "--quiet", *more])


def test_what_is_fitted_can_be_used(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "noise.json"
    assert fit(room, "heavy", file) == 0
    assert "boundary" in capsys.readouterr().out
    data = json.loads(file.read_text())
    assert data["source"]["reference"] == "ground truth"
    assert data["source"]["synthetic"]
    assert read_noise(file).stuff_absent > 0.05
    command = ["masks", "corrupt", str(room), "--out", "again", "--noise", str(file), "--quiet"]
    assert main(command) == 0


def test_another_set_may_be_the_reference(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(room, "clean", tmp_path / "same.json", "--reference", "clean") == 0
    noise = read_noise(tmp_path / "same.json")
    assert (noise.missed, noise.boundary, noise.hallucinated) == ((0.0, 0.0, 0.0), 0.0, 0.0)
    assert json.loads((tmp_path / "same.json").read_text())["source"]["reference"] == "masks_clean"
    assert fit(room, "clean", tmp_path / "x.json", "--reference", "none-such") != 0
    assert "no such folder of pseudo-masks" in capsys.readouterr().err
    assert fit(room, "clean", tmp_path / "x.json", "--most", "0") != 0
    assert not (tmp_path / "x.json").exists()
