"""Which training frame a step sees: a pure function of (seed, step), so that a resumed run repeats nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Permutation of ``range(count)`` that epoch ``epoch`` (``count`` steps) walks through."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def frame_of_step(seed: int, step: int, count: int) -> int:
    """Position in the training list, 0 … count − 1, of the frame that step ``step`` ≥ 0 trains on."""
    epoch, position = divmod(step, count)
    return int(epoch_order(seed, epoch, count)[position])


class StepSampler(Sampler[int]):
    """Endless sampler: yields ``indices[frame_of_step(seed, t, len(indices))]`` for t = start, start + 1, …

    It has no length on purpose: training is one endless epoch, and a resumed run starts at its own step
    (a plain shuffling loader starts over at index 0).
    """

    def __init__(self, indices: Sequence[int], seed: int, start: int = 0) -> None:
        """Args: frame indices to draw from (not empty), the seed, the step of the first frame."""
        if not indices:
            raise ValueError("no frames to sample from")
        if seed < 0 or start < 0:
            raise ValueError(f"seed {seed} and start {start} must not be negative")
        self.indices = list(indices)
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[int]:
        count = len(self.indices)
        epoch, position = divmod(self.start, count)
        while True:
            for place in epoch_order(self.seed, epoch, count)[position:]:
                yield self.indices[place]
            epoch, position = epoch + 1, 0
