"""A cache of decoded frames that never outgrows its budget."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Anything that knows how many bytes it holds."""

    @property
    def nbytes(self) -> int: ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Sized)


class ByteBudgetCache(Generic[K, V]):
    """Keeps values until the budget is used up, and makes the others again at each request.

    Nothing is evicted: training walks through all frames over and over, and under such a walk a least-recently-used
    rule would throw out each frame shortly before its turn, while a fixed resident set always hits for its share.
    """

    def __init__(self, budget: int) -> None:
        """Args: bytes that the values may take in all (0: cache nothing)."""
        self.budget = budget
        self.used = 0
        self._values: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K, make: Callable[[K], V]) -> V:
        """The value at ``key``; calls ``make(key)`` when it is not held."""
        held = self._values.get(key)
        if held is not None:
            return held
        value = make(key)
        if self.used + value.nbytes <= self.budget:
            self._values[key] = value
            self.used += value.nbytes
        return value
