"""The fuzzer itself: each kind of bad parser is caught, and a good one is not."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from fuzzing import Blob, check, in_file, mutant, mutations, run

from panbench.data.images import read_integers
from panbench.errors import UserError

SEED = json.dumps({"size": 3, "values": [1, 2, 3]}).encode()


def good(data: bytes) -> object:
    try:
        read = json.loads(data)
        return [float(v) for v in read["values"]]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise UserError(f"input: is no list of values ({type(error).__name__}): write it again") from error


def test_a_parser_that_refuses_in_one_line_passes() -> None:
    report = check(good, [SEED], 500)
    assert report.read + report.refused == 500
    assert report.read > 20  # many damages leave the values alone
    assert report.refused > 200


def test_mutations_are_the_same_each_time_differ_from_each_other_and_stay_small() -> None:
    made = list(mutations(SEED, 300, seed=5))
    assert made == [mutant(SEED, 5, i) for i in range(300)]
    assert len(set(made)) > 250
    assert sum(m == SEED for m in made) < 15
    assert min(map(len, made)) == 0
    assert max(map(len, made)) < len(SEED) + 3 * (1 << 22)
    assert made != list(mutations(SEED, 300, seed=6))
    # Every kind of damage: longer, shorter, of equal length; text numbers replaced; far too deep.
    assert any(len(m) < len(SEED) for m in made)
    assert any(len(m) > 1000 + len(SEED) for m in made)
    assert any(b"99999999999" in m for m in made)


def test_an_error_of_another_kind_is_caught_with_the_input_that_makes_it(tmp_path: Path) -> None:
    def bad(data: bytes) -> object:
        if len(data) < len(SEED):
            raise ValueError("short")
        return data

    with pytest.raises(AssertionError, match=r"error: ValueError: 'short' \(.*test_fuzzing\.py:\d+ bad\)") as caught:
        check(bad, [SEED], 50, keep=tmp_path)
    line = str(caught.value).splitlines()[-1]
    index = int(line.rsplit(", ", 1)[1].rstrip(")"))
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == mutant(SEED, 0, index)
    assert kept.name in line


def test_a_hang_is_caught_and_the_rest_goes_on() -> None:
    def slow(data: bytes) -> object:
        if len(data) > 2 * len(SEED):
            time.sleep(60)
        return data

    report = run(slow, [SEED], 12, seconds=0.5)
    assert [f.kind for f in report.failures] == ["hang"]
    expected = sum(len(mutant(SEED, 0, i)) > 2 * len(SEED) for i in range(12))
    assert report.failed == expected > 0
    assert report.read == 12 - expected


def test_memory_without_bound_is_caught_even_where_it_is_refused_afterwards() -> None:
    def greedy(data: bytes) -> object:
        return bytearray((1 << 31) if data != SEED else 1)

    def late(data: bytes) -> object:
        try:
            return greedy(data)
        except MemoryError as error:
            raise UserError("input: too large: write a smaller one") from error

    def lazy(data: bytes) -> object:
        # Reserved and never touched: no resident page, and still what a machine with less memory would refuse.
        return np.zeros(1 << 31, dtype=np.uint8) if data != SEED else None

    for parser in (greedy, late, lazy):
        report = run(parser, [SEED], 20)
        assert [f.kind for f in report.failures] == ["memory"], parser
        assert report.failed == sum(mutant(SEED, 0, i) != SEED for i in range(20))


def test_a_crash_is_caught() -> None:
    def crash(data: bytes) -> object:
        if data != SEED:
            os.kill(os.getpid(), signal.SIGKILL)
        return data

    report = run(crash, [SEED], 3)
    assert report.failed == 3
    assert "exit code -9" in report.failures[0].detail


@pytest.mark.parametrize("text", ["", "two\nlines", "an escape \x1b[2J"])
def test_a_message_must_be_one_printable_line(text: str) -> None:
    class Chatty(UserError):
        def __str__(self) -> str:
            return text

    def chatty(data: bytes) -> object:
        if data != SEED:
            raise Chatty(text)
        return data

    assert [f.kind for f in run(chatty, [SEED], 5).failures] == ["message"]


def test_a_valid_input_that_is_refused_is_a_failure() -> None:
    with pytest.raises(AssertionError, match=r"the unchanged seed 1: refused: input: is no list of values"):
        check(good, [SEED, b"{}"], 10)


def test_parsers_of_paths_and_of_files_are_fed_alike(tmp_path: Path) -> None:
    parse = in_file(tmp_path / "x.json", lambda path: good(path.read_bytes()))
    assert check(parse, [SEED], 50) == check(lambda data: good(Blob("x.json", data).read_bytes()), [SEED], 50)
    with pytest.raises(UserError, match=r"^a/5\.png: cannot be decoded"):
        read_integers(Blob("a/5.png", b"no image"))
    assert Blob("a/5.png", b"").stem == "5"
