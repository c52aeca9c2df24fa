"""Joint pixel counts of a prediction and the truth: the one thing every panoptic score is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

COLUMNS = ("frame", "true_class", "true_id", "pred_class", "pred_id", "pixels")


@dataclass(frozen=True, eq=False)
class PairCounts:
    """Sparse counts: ``pixels[r]`` pixels of frame ``frame[r]`` show (true class, true id) and (pred class, pred id).

    All arrays are int64 [R]; a combination occurs at most once. Class 0 is void, id 0 is "no instance".
    """

    frame: Ints
    true_class: Ints
    true_id: Ints
    pred_class: Ints
    pred_id: Ints
    pixels: Ints

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def rows(self) -> Ints:
        """The table [R, 6] in the order of :data:`COLUMNS`."""
        return np.stack([getattr(self, name) for name in COLUMNS], axis=1)

    @classmethod
    def from_rows(cls, rows: NDArray[Any]) -> PairCounts:
        """Inverse of :attr:`rows`; equal combinations are added up. ``rows`` is [R, 6], integers ≥ 0."""
        table = np.asarray(rows, dtype=np.int64).reshape(-1, len(COLUMNS))
        keys, pixels = group_sum([table[:, i] for i in range(len(COLUMNS) - 1)], table[:, -1])
        return cls(keys[0], keys[1], keys[2], keys[3], keys[4], pixels)

    def scene(self) -> PairCounts:
        """The same counts with all frames added up (frame 0 throughout)."""
        keys, pixels = group_sum([self.true_class, self.true_id, self.pred_class, self.pred_id], self.pixels)
        return PairCounts(np.zeros_like(pixels), keys[0], keys[1], keys[2], keys[3], pixels)

    def without_true_ids_above(self, limit: int) -> PairCounts:
        """Counts in which true ids > ``limit`` are "no instance" (specs: 10000 for ScanNet++)."""
        return replace(self, true_id=np.where(self.true_id > limit, 0, self.true_id))


def count_pairs(
    true_class: ArrayLike, true_id: ArrayLike, pred_class: ArrayLike, pred_id: ArrayLike, frame: int = 0
) -> PairCounts:
    """Count one frame. The four maps are integers ≥ 0 of one shape.

    Labels are piecewise constant, so the pixels are first cut into runs of equal labels and only the runs are sorted.

    Raises:
        ValueError: if shapes differ or a label is negative.
    """
    maps = [np.asarray(m) for m in (true_class, true_id, pred_class, pred_id)]
    if len({m.shape for m in maps}) != 1:
        raise ValueError(f"label maps have different shapes: {[m.shape for m in maps]}")
    flat = [m.reshape(-1) for m in maps]
    if flat[0].size == 0:
        return concatenate([])
    if any(int(m.min()) < 0 for m in flat):
        raise ValueError("label maps must not be negative")
    change = np.zeros(flat[0].size, dtype=bool)
    change[0] = True
    for m in flat:
        change[1:] |= m[1:] != m[:-1]
    start = np.flatnonzero(change)
    lengths = np.diff(start, append=flat[0].size)
    keys, pixels = group_sum([m[start].astype(np.int64) for m in flat], lengths)
    frames = np.full(len(pixels), frame, dtype=np.int64)
    return PairCounts(frames, keys[0], keys[1], keys[2], keys[3], pixels)


def concatenate(parts: Sequence[PairCounts]) -> PairCounts:
    """Counts of several frames or processes as one table; equal combinations are added up."""
    if not parts:
        return PairCounts.from_rows(np.zeros((0, len(COLUMNS)), dtype=np.int64))
    return PairCounts.from_rows(np.concatenate([p.rows for p in parts]))


def group_sum(keys: Sequence[Ints], weights: Ints) -> tuple[list[Ints], Ints]:
    """Add up ``weights`` [R] over equal key tuples (integers ≥ 0): (unique keys, each [U], sums [U]), sorted by key."""
    if len(weights) == 0:
        return [np.zeros(0, dtype=np.int64) for _ in keys], np.zeros(0, dtype=np.int64)
    sizes = [int(k.max()) + 1 for k in keys]
    if np.prod([float(s) for s in sizes]) < 2.0**62:
        packed = np.zeros(len(weights), dtype=np.int64)
        for key, size in zip(keys, sizes, strict=True):
            packed = packed * size + key
        unique, inverse = np.unique(packed, return_inverse=True)
        out: list[Ints] = []
        for size in reversed(sizes):
            unique, key = np.divmod(unique, size)
            out.append(key)
        out.reverse()
    else:  # ids near 2^32: the keys do not fit one word
        table, inverse = np.unique(np.stack(list(keys), axis=1), axis=0, return_inverse=True)
        out = [table[:, i] for i in range(len(keys))]
    sums = np.zeros(len(out[0]), dtype=np.int64)
    np.add.at(sums, inverse.reshape(-1), weights)
    return out, sums


def majority(ids: Ints, classes: Ints, pixels: Ints) -> tuple[Ints, Ints]:
    """Class that most pixels of each id have; a tie goes to the smallest class, void (0) takes part.

    Args:
        ids, classes, pixels: [R] rows of counts.

    Returns:
        The ids in ascending order [U] and their classes [U].
    """
    (group, group_class), total = group_sum([ids, classes], pixels)
    order = np.lexsort((group_class, -total, group))
    group, group_class = group[order], group_class[order]
    first = np.ones(len(group), dtype=bool)
    first[1:] = group[1:] != group[:-1]
    return group[first], group_class[first]
