"""Arrays of numbers from the bytes of ``.npy`` files that nobody vouches for."""

from __future__ import annotations

import io
import math
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray


def parse_npy(data: bytes, kinds: str = "iuf") -> NDArray[Any]:
    """The array; nothing is unpickled, and no memory is taken for more than the bytes hold.

    ``kinds`` are the kinds of values that it may have: "i" and "u" integers, "f" floats, "U" text.

    Raises:
        ValueError: it is no whole array of such values.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"format {version}")
        shape, _, kind = np.lib.format.read_array_header_1_0(stream)
        if kind.kind not in kinds or min(shape, default=1) < 1 or math.prod(shape) * kind.itemsize > len(data):
            raise ValueError(f"{kind} {shape} in {len(data)} bytes")
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (EOFError, SyntaxError, TokenError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error
