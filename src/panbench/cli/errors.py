"""Turns what goes wrong into one line and an exit status. A defect of panbench itself keeps its traceback."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable, Sequence

from panbench.errors import Interrupted, UserError

USER_ERROR = 2
INTERRUPTED = 130

_DISK = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again, it continues",
    errno.EDQUOT: "your disk quota is used up; free some space and run the same command again, it continues",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder you may write to, or mend its permissions",
}


def one_line(error: BaseException) -> str | None:
    """The line to show for an error that has a known cause outside the program, else None."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f"{error.filename}: " if error.filename else ""
        return where + _DISK[error.errno]
    return None


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def explained(command: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """Decorate a command so that user errors, full disks and Ctrl-C end in one line and their exit status."""

    @functools.wraps(command)
    def wrapped(argv: Sequence[str]) -> int:
        try:
            return command(argv)
        except (KeyboardInterrupt, Interrupted) as stop:
            detail = " ".join(str(stop).split())
            _tell(f"stopped: {detail}" if detail else "stopped")
            return INTERRUPTED
        except BrokenPipeError:
            # The reader (head, less) left; that is not an error of ours. Keep the interpreter from saying so at exit.
            sys.stderr.close()
            return 0
        except (UserError, OSError) as error:
            line = one_line(error)
            if line is None:
                raise
            _tell(f"error: {line}")
            return USER_ERROR

    return wrapped
