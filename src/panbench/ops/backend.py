"""Which back end runs the operators, decided once and said aloud.

``reference`` is pure torch: the specification, any dtype, slow. ``cpu`` is C++, float32. ``auto`` takes the fastest one
that works and logs which and why; it never falls back in silence.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Literal

import torch

from panbench.errors import UserError
from panbench.ops import build

logger = logging.getLogger(__name__)

Backend = Literal["reference", "cpu"]
BACKENDS: tuple[Backend, ...] = ("reference", "cpu")


@dataclass
class _State:
    """What this process found out: a failed build is not tried again."""

    loaded: bool = False
    failure: build.BuildError | None = None
    chosen: Backend | None = None
    reason: str = ""


_state = _State()


def load_cpu() -> None:
    """Compile if needed and load the C++ operators.

    Raises:
        BuildError: with the cause; the same one again, without another try, in the rest of this process.
    """
    if _state.loaded:
        return
    if _state.failure is not None:
        raise _state.failure
    try:
        library = build.build()
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            raise build.BuildError(f"{library}: cannot load the operators: {error}; delete the folder") from error
    except build.BuildError as error:
        _state.failure = error
        raise
    from panbench.ops import autograd

    autograd.register()
    _state.loaded = True


def choose(name: str | None = None) -> Backend:
    """Fix the back end of this process: a name, ``auto``, or None for ``$PANBENCH_BACKEND`` (default ``auto``).

    Raises:
        UserError: unknown name, or a named back end that does not work here.
    """
    wanted = name or os.environ.get("PANBENCH_BACKEND") or "auto"
    if wanted == "auto":
        try:
            load_cpu()
            _state.chosen, _state.reason = "cpu", "auto: the C++ operators are compiled and loaded"
        except build.BuildError as error:
            _state.chosen, _state.reason = "reference", f"auto: the C++ operators do not work here: {error}"
            logger.warning("back end: reference (slow). %s", _state.reason)
    elif wanted == "cpu":
        load_cpu()
        _state.chosen, _state.reason = "cpu", "asked for"
    elif wanted == "reference":
        _state.chosen, _state.reason = "reference", "asked for"
    else:
        raise UserError(f"unknown back end {wanted!r}; there are auto, {', '.join(BACKENDS)}")
    logger.info("back end: %s (%s)", _state.chosen, _state.reason)
    return _state.chosen


def resolve(backend: Backend | None = None) -> Backend:
    """The back end of one call: the one given, else the process's choice (made now if none was made)."""
    if backend is not None:
        if backend == "cpu":
            load_cpu()
        return backend
    return _state.chosen or choose()


def reason() -> str:
    """Why the process's back end was chosen; empty before that."""
    return _state.reason


def describe() -> list[tuple[str, bool, str]]:
    """(name, available, why) of every back end. Compiles the C++ operators if that was not done yet."""
    try:
        load_cpu()
        works, why = True, f"C++ operators in {build.build().parent}"
    except build.BuildError as error:
        works, why = False, str(error)
    return [("reference", True, f"pure torch {torch.__version__}"), ("cpu", works, why)]
