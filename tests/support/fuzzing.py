"""Feeds parsers damaged and hostile input: each must give a value or one clear line, in bounded time and memory."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import multiprocessing as mp
import re
import resource
import struct
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from panbench.errors import UserError

MAX_BYTES = 1 << 22  # a mutant never grows beyond this and its original: slowness must come from the parser
_START = 120.0  # seconds that a child may take to import what the parser needs
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_TEXT_NUMBERS = (
    b"0", b"-1", b"1", b"255", b"65536", b"2147483647", b"4294967296", b"99999999999", b"9" * 40, b"0.5", b"nan",
    b"-inf", b"1e999", b"1e-320", b"null", b"true", b'"x"', b"[]", b"{}", b"",
)  # fmt: skip


@dataclass(frozen=True)
class Blob:
    """Bytes that pass for a file: a :class:`panbench.data.file.File` in memory."""

    name: str
    data: bytes

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    def read_bytes(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return self.name


def in_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A parser of bytes from one that wants a path: each input is written to ``path`` first."""

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return parse


def mutant(data: bytes, seed: int, index: int) -> bytes:
    """The ``index``-th mutation of ``data``: one to three random damages, the same for the same arguments."""
    rng = np.random.default_rng([seed, index])
    # Text breaks at almost any damage: half of the time only its numbers change, so that what reads them is met, too.
    damages = (_other_number,) if _is_text(data) and rng.random() < 0.5 else _DAMAGES
    for _ in range(int(rng.integers(1, 4))):
        damage = damages[int(rng.integers(len(damages)))]
        data = damage(data, rng)[: len(data) + MAX_BYTES]
    return data


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """``count`` mutations: bit flips, truncations, splices, absurd integers and numbers at places, repeated blocks."""
    return (mutant(data, seed, index) for index in range(count))


@dataclass
class Failure:
    """An input that was neither read nor refused in one line."""

    index: int
    kind: str
    detail: str


@dataclass
class Report:
    """What became of the inputs. ``failures`` has one of each kind and place."""

    read: int = 0
    refused: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)


def check(
    parse: Callable[[bytes], object],
    seeds: Sequence[bytes],
    count: int,
    *,
    seed: int = 0,
    seconds: float = 10.0,
    memory: int = 512 << 20,
    keep: Path | None = None,
) -> Report:
    """Mutate valid inputs and see that the parser answers each with a value or a :class:`UserError` of one line.

    Args:
        parse: reads one input to its end (whatever it decodes lazily, too).
        seeds: valid inputs; input i is mutant i of ``seeds[i % len(seeds)]``. Each must be read without error.
        count: how many mutants in all.
        seed: of the mutations.
        seconds: wall-clock limit per input.
        memory: bytes that a parser may take beyond what the process has before. Small inputs need little.
        keep: folder that failing inputs are written to.

    Raises:
        AssertionError: names each kind of failure, the sha256 of an input that causes it, and how to make it again.
    """
    report = run(parse, seeds, count, seed=seed, seconds=seconds, memory=memory)
    if not report.failures:
        return report
    lines = [f"{report.failed} of {count} inputs were neither read nor refused in one line:"]
    for failure in report.failures:
        if failure.index < 0:
            lines.append(f"the unchanged seed {failure.index + len(seeds)}: {failure.kind}: {failure.detail}")
            continue
        place = failure.index % len(seeds)
        data = mutant(seeds[place], seed, failure.index)
        digest = hashlib.sha256(data).hexdigest()
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / digest[:16]).write_bytes(data)
        lines.append(
            f"{failure.kind}: {failure.detail}\n  input {digest[:16]}, {len(data)} bytes: "
            f"mutant(seeds[{place}], {seed}, {failure.index})"
        )
    raise AssertionError("\n".join(lines))


def run(
    parse: Callable[[bytes], object],
    seeds: Sequence[bytes],
    count: int,
    *,
    seed: int = 0,
    seconds: float = 10.0,
    memory: int = 512 << 20,
    most: int = 8,
) -> Report:
    """What :func:`check` asserts, as a report. Stops at ``most`` different failures.

    A child process works through the inputs and tells of each; this one watches the clock. A crash or a hang costs the
    child, and another one goes on behind the input that did it.
    """
    if not seeds:
        raise ValueError("no valid inputs to mutate")
    report = Report()
    seen: set[tuple[str, str]] = set()
    next_input = -len(seeds)
    while next_input < count and len(report.failures) < most:
        for index, kind, detail in _child(parse, seeds, range(next_input, count), seed, seconds, memory):
            next_input = index + 1
            if kind == "read":
                report.read += index >= 0
            elif kind == "refused" and index >= 0:
                report.refused += 1
            else:
                report.failed += 1
                if (kind, _place(detail)) not in seen:
                    seen.add((kind, _place(detail)))
                    report.failures.append(Failure(index, kind, detail))
                if len(report.failures) >= most:
                    break
    return report


def _child(
    parse: Callable[[bytes], object], seeds: Sequence[bytes], inputs: range, seed: int, seconds: float, memory: int
) -> Iterator[tuple[int, str, str]]:
    """Outcomes (index, kind, detail) of a child that works through the inputs until it ends, hangs or dies."""
    # Forked: the parser may be any closure, and starting costs milliseconds.
    context = mp.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, parse, seeds, inputs, seed, memory), daemon=True)
    process.start()
    there.close()
    try:
        # A child that dies before it is ready is found dead at its first input.
        if here.poll(_START):
            with contextlib.suppress(EOFError):
                here.recv()
        for index in inputs:
            if not here.poll(seconds):
                yield index, "hang", f"no answer within {seconds:g} s"
                return
            try:
                kind, detail = here.recv()
            except EOFError:
                process.join()
                yield index, "crash", f"the process died with exit code {process.exitcode}"
                return
            yield index, kind, detail
    finally:
        process.kill()
        process.join()
        here.close()


def _work(
    pipe: Connection, parse: Callable[[bytes], object], seeds: Sequence[bytes], inputs: range, seed: int, memory: int
) -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # Thread pools of the parent do not survive a fork.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
    # What a parser imports at its first use counts towards neither limit.
    for data in seeds:
        _outcome(parse, data)
    _limit_memory(memory)
    pipe.send("ready")
    for index in inputs:
        data = seeds[index] if index < 0 else mutant(seeds[index % len(seeds)], seed, index)
        pipe.send(_outcome(parse, data))


def _limit_memory(memory: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, resource.RLIM_INFINITY))
    # What a crash leaves behind is the input, not a core file of gigabytes.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _outcome(parse: Callable[[bytes], object], data: bytes) -> tuple[str, str]:
    try:
        parse(data)
    except UserError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                return "memory", f"asks for too much memory before it refuses ({_where(cause)})"
            cause = cause.__cause__ or cause.__context__
        text = str(error)
        if not text.strip() or not text.isprintable():
            return "message", f"is not one printable line: {text!r} ({_where(error)})"
        return "refused", text
    except MemoryError as error:
        return "memory", f"asks for too much memory ({_where(error)})"
    except BaseException as error:  # noqa: BLE001 - whatever else a parser raises is the finding
        return "error", f"{type(error).__name__}: {str(error)[:200]!r} ({_where(error)})"
    return "read", ""


def _where(error: BaseException) -> str:
    """The innermost line of ours that an error went through, else the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "panbench" in f.filename]
    frame = (ours or frames)[-1] if frames else None
    return "?" if frame is None else f"{frame.filename}:{frame.lineno} {frame.name}"


def _place(detail: str) -> str:
    """The part of a detail that tells failures apart: the place in the code, without the input's own values."""
    return detail[detail.rfind("(") :]


# ---------------------------------------------------------------------------------------------------------- damages


def _is_text(data: bytes) -> bool:
    return data[:512].isascii() and b"\0" not in data[:512]


def _somewhere(data: bytes, rng: np.random.Generator) -> int:
    """An offset; every other time in the first 512 bytes, where headers are."""
    top = len(data) if rng.random() < 0.5 else min(len(data), 512)
    return int(rng.integers(0, max(top, 1)))


def _span(data: bytes, rng: np.random.Generator, longest: int = 4096) -> tuple[int, int]:
    start = _somewhere(data, rng)
    return start, min(len(data), start + int(2 ** rng.uniform(0, np.log2(longest))))


def _flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(int(2 ** rng.uniform(0, 5)) if out else 0):
        out[_somewhere(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: _somewhere(data, rng)]


def _delete(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _splice(data: bytes, rng: np.random.Generator) -> bytes:
    """A span of the input over or between what stands elsewhere."""
    start, end = _span(data, rng)
    at = _somewhere(data, rng)
    return data[:at] + data[start:end] + data[at + (end - start if rng.random() < 0.5 else 0) :]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    """A block many times over; a few bytes, like an opening bracket, very many times."""
    if rng.random() < 0.5:
        start, end = _span(data, rng)
        times = int(rng.integers(2, 32))
    else:
        start, end = _span(data, rng, 8)
        times = int(2 ** rng.uniform(4, 17))
    return data[:end] + data[start:end] * times + data[end:]


def _absurd_integer(data: bytes, rng: np.random.Generator) -> bytes:
    width = int(rng.choice([1, 2, 4, 8]))
    top = 1 << 8 * width
    values = (
        0,
        1,
        top // 2 - 1,
        top // 2,
        top - 1,
        top - 2,
        min(top - 1, 1 << 30),
        min(top - 1, 100_000),
        len(data) % top,
    )
    value = values[int(rng.integers(len(values)))]
    at = _somewhere(data, rng)
    return data[:at] + value.to_bytes(width, "little" if rng.random() < 0.5 else "big") + data[at + width :]


def _absurd_float(data: bytes, rng: np.random.Generator) -> bytes:
    value = float(rng.choice([np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-40, 0.0, -0.0]))
    code = "<f" if rng.random() < 0.5 else "<d"
    at = _somewhere(data, rng)
    return data[:at] + struct.pack(code, value) + data[at + struct.calcsize(code) :]


def _other_number(data: bytes, rng: np.random.Generator) -> bytes:
    """Another value in place of a number written in digits: JSON, text headers, matrices."""
    # Searched from a random place: a binary file has digits only by chance, a long text very many.
    found = _NUMBER.search(data, _somewhere(data, rng))
    if found is None:
        return _flip_bits(data, rng)
    return data[: found.start()] + _TEXT_NUMBERS[int(rng.integers(len(_TEXT_NUMBERS)))] + data[found.end() :]


def _noise(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng, 64)
    return data[:start] + rng.bytes(end - start) + data[end:]


_DAMAGES: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    _flip_bits, _truncate, _delete, _splice, _repeat, _absurd_integer, _absurd_integer, _absurd_float, _other_number,
    _other_number, _noise,
)  # fmt: skip
