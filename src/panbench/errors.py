"""The errors that are no defects: what a user can act on, and a stop that was asked for."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the program is wrong: a file, a setting, the machine.

    The message is one line: what is wrong, where, and what to do about it. The command line prints it without a
    traceback and exits with status 2. Messages quote names and values of files that nobody vouches for: what is not
    printable in them is shown as "?", line breaks as a space.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())
        super().__init__("".join(c if c.isprintable() else "?" for c in line))


class Interrupted(Exception):
    """The user asked to stop (Ctrl-C, SIGTERM). The message says how to go on; the command line exits with status 130.

    Not a KeyboardInterrupt, because Lightning answers that with an exit of its own.
    """
