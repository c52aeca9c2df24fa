"""The error that a user can act on."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the program is wrong: a file, a setting, the machine.

    The message is one line: what is wrong, where, and what to do about it. The command line prints it without a
    traceback and exits with status 2.
    """
