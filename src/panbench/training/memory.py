"""How the process's allocator treats large blocks."""

from __future__ import annotations

import ctypes
import logging

log = logging.getLogger(__name__)

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Make glibc reuse freed blocks of any size instead of giving them back to the system; elsewhere do nothing.

    A step allocates label images of tens of megabytes. By default glibc maps each anew, and the page faults cost more
    than blending does. The price is that the process stays as large as it was at its largest.

    Returns:
        whether it took effect.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError) as error:
        log.debug("allocator left as it is: no glibc (%s)", error)
        return False
    done = bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    if not done:
        log.debug("allocator left as it is: mallopt refused")
    return done
