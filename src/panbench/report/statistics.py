"""Means over seeds and scenes, their spread, and whether a difference is more than noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SceneRule = Literal["rounded-mean", "mean"]

# One number a scene and seed; a method without seeds has the seed NO_SEED.
Samples = Mapping[str, Mapping[int, float]]
NO_SEED = -1

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """A mean over seeds, then over scenes.

    Attributes:
        mean: nan if there is nothing to average, or a scene has no defined value.
        sd: standard deviation (n − 1) over the seeds that all scenes have, of the mean over scenes; nan with fewer than
            two of them.
        seeds: how many seeds all scenes have.
        scenes: how many scenes.
    """

    mean: float
    sd: float
    seeds: int
    scenes: int


@dataclass(frozen=True)
class Difference:
    """A difference to another row, and the interval in which resampling puts it.

    Attributes:
        value: of the means.
        low, high: ends of the 95 % interval; nan if nothing could be resampled.
        over: what was resampled: "scenes and seeds", "scenes", "seeds", or "" for nothing.
    """

    value: float
    low: float
    high: float
    over: str

    @property
    def noise(self) -> bool:
        """True unless the interval leaves out 0: a difference without an interval is not shown to be one."""
        return not (self.low > 0 or self.high < 0)


def scene_means(samples: Samples) -> dict[str, float]:
    """Mean over the seeds of every scene; nan where a seed has no defined value."""
    return {scene: statistics.fmean(seeds.values()) for scene, seeds in samples.items() if seeds}


def mean_over_scenes(values: Sequence[float], rule: SceneRule) -> float:
    """Mean of the scenes' values by the protocol's rule; nan of nothing."""
    if not values or any(math.isnan(value) for value in values):
        return math.nan
    return statistics.fmean(round(value, 1) if rule == "rounded-mean" else value for value in values)


def common_seeds(samples: Samples) -> list[int]:
    """Seeds that every scene has, sorted."""
    sets = [set(seeds) for seeds in samples.values()]
    return sorted(set.intersection(*sets)) if sets else []


def summarise(samples: Samples, rule: SceneRule) -> Summary:
    """Mean over seeds, then scenes, and the spread over seeds."""
    means = scene_means(samples)
    seeds = common_seeds(samples)
    by_seed = [mean_over_scenes([samples[scene][seed] for scene in means], rule) for seed in seeds]
    sd = statistics.stdev(by_seed) if len(by_seed) > 1 and not any(map(math.isnan, by_seed)) else math.nan
    return Summary(mean_over_scenes(list(means.values()), rule), sd, len(seeds), len(means))


def difference(
    row: Samples, other: Samples, rule: SceneRule, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """``row`` minus ``other`` with its interval by a hierarchical bootstrap, paired over scenes.

    Scenes are drawn with replacement, the same ones for both rows; within each drawn scene the seeds of either row are
    drawn with replacement, apart from each other, because equal seeds of two methods have nothing in common. The
    interval is the middle 95 % of the differences. With one scene it speaks of seeds alone, with one seed of scenes
    alone.

    Args:
        row, other: of the same scenes.
        rule: of the protocol; the resampled means are not rounded.
        resamples: how often to draw.
        seed: of the draws: equal input gives equal output.

    Raises:
        ValueError: if the scenes differ.
    """
    if set(row) != set(other):
        raise ValueError("rows of different scenes cannot be paired")
    scenes = sorted(row)
    value = summarise(row, rule).mean - summarise(other, rule).mean
    seeds = any(len(samples[scene]) > 1 for samples in (row, other) for scene in scenes)
    over = " and ".join(what for what, many in (("scenes", len(scenes) > 1), ("seeds", seeds)) if many)
    if math.isnan(value) or not over:
        return Difference(value, math.nan, math.nan, "")
    random = np.random.default_rng(seed)
    drawn = random.integers(len(scenes), size=(resamples, len(scenes)))
    change = _resampled(row, scenes, drawn, random) - _resampled(other, scenes, drawn, random)
    low, high = np.quantile(change, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(value, float(low), float(high), over)


def _resampled(
    samples: Samples, scenes: Sequence[str], drawn: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.float64]:
    """Mean of each draw of scenes [B, S], with seeds drawn anew in every place of it: [B]."""
    counts = np.asarray([len(samples[scene]) for scene in scenes])
    table = np.zeros((len(scenes), counts.max()))
    for i, scene in enumerate(scenes):
        table[i, : counts[i]] = list(samples[scene].values())
    total = np.zeros(drawn.shape)
    n = counts[drawn]
    for k in range(counts.max()):
        pick = (random.random(drawn.shape) * n).astype(np.int64)
        total += np.where(k < n, table[drawn, pick], 0.0)
    return (total / n).mean(axis=1)
