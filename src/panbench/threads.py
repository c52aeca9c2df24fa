"""How long threads that wait for others keep a core busy."""

from __future__ import annotations

import os


def brief_waits() -> bool:
    """Let waiting OpenMP threads spin for some microseconds. To be called before torch is imported.

    The usual millisecond costs another program on that core most of its time, and this one too. Nothing is changed
    where ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` is set.

    Returns:
        whether it was set here.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return False
    os.environ["GOMP_SPINCOUNT"] = "10000"
    return True
