"""The dispatcher: fast, and helpful about verbs."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from panbench import __version__
from panbench.cli.errors import explained
from panbench.errors import Interrupted, UserError


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "panbench", "--help"], check=True, capture_output=True, text=True)
    assert "panbench" in done.stdout
    assert "fit" in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from panbench.cli.main import run; run(['--help']);"
        "print(sorted({'torch', 'numpy', 'lightning', 'rich', 'pydantic', 'jsonargparse'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_help_lists_every_verb(panbench: Callable) -> None:
    answer = panbench("--help")
    assert answer.status == 0
    for verb in ("fit", "validate", "test", "predict", "eval", "data", "doctor"):
        assert f"  {verb} " in answer.out


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_the_help_of_a_training_verb_fits_on_a_screen(panbench: Callable, verb: str) -> None:
    answer = panbench(verb, "--help")
    assert answer.status == 0
    assert f"usage: panbench {verb} --config FILE" in answer.out
    assert len(answer.out.splitlines()) < 30


def test_version(panbench: Callable) -> None:
    assert panbench("--version").out == f"panbench {__version__}\n"


@pytest.mark.parametrize(("typed", "meant"), [("fti", "fit"), ("evla", "eval"), ("doktor", "doctor")])
def test_an_unknown_verb_is_one_line_with_the_nearest(panbench: Callable, typed: str, meant: str) -> None:
    answer = panbench(typed)
    assert answer.status == 2
    assert answer.err == f"error: unknown verb {typed!r}: did you mean {meant}?\n"


def test_a_verb_like_none_lists_them(panbench: Callable) -> None:
    assert "known: fit, validate" in panbench("zzzzzz").err


def _raising(error: BaseException) -> Callable[[Sequence[str]], int]:
    @explained
    def command(argv: Sequence[str]) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a\n b"), 2, "error: a b\n"),
        (Interrupted("at step 9; the same command continues"), 130, "stopped: at step 9; the same command continues\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (OSError(errno.ENOSPC, "No space", "/x/last.ckpt"), 2, "error: /x/last.ckpt: the disk is full; "),
        (OSError(errno.EROFS, "Read-only", "/x"), 2, "error: /x: the file system is read-only; "),
        (PermissionError(errno.EACCES, "denied", "/x"), 2, "error: /x: permission denied; "),
    ],
)
def test_a_known_cause_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _raising(error)([]) == status
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        _raising(ZeroDivisionError())([])
    with pytest.raises(FileNotFoundError):
        _raising(FileNotFoundError(errno.ENOENT, "no such file", "/x"))([])
