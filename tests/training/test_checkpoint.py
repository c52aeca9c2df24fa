"""Checkpoints are whole or absent, and hold plain data."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from panbench.errors import UserError
from panbench.training.checkpoint import AtomicCheckpointIO, SaveLast
from panbench.training.files import replacing, write_text


class _FullDisk:
    """Fails when the checkpoint is half written."""

    def __reduce__(self) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")


class _Killed:
    """Ends the process without warning when the checkpoint is half written."""

    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
        return int, ()


def test_a_checkpoint_comes_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"w": torch.arange(5), "step": 3}, path)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert loaded["step"] == 3
    assert torch.equal(loaded["w"], torch.arange(5))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_a_write_that_fails_half_way_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)
    with pytest.raises(OSError, match="No space"):
        io.save_checkpoint({"w": torch.zeros(1000), "bad": _FullDisk()}, path)
    assert io.load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_kill_in_the_middle_of_writing_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)
    writer = multiprocessing.get_context("fork").Process(
        target=io.save_checkpoint, args=({"w": torch.zeros(1000), "bad": _Killed()}, path)
    )
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    assert (tmp_path / "last.ckpt.part").exists()
    assert io.load_checkpoint(path) == {"step": 1}
    # What was left behind is in nobody's way.
    io.save_checkpoint({"step": 2}, path)
    assert io.load_checkpoint(path) == {"step": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("size", [0, 10, 500, -100])
def test_a_cut_off_checkpoint_is_one_line_that_names_it(tmp_path: Path, size: int) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read as a checkpoint .* --fresh") as error:
        AtomicCheckpointIO().load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_with_more_than_plain_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"callback": SaveLast()}, path)
    with pytest.raises(UserError, match="cannot be read"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")


def test_removing_twice_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({}, path)
    AtomicCheckpointIO().remove_checkpoint(path)
    AtomicCheckpointIO().remove_checkpoint(path)
    assert not path.exists()


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replacing(path) as stream:
        stream.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_training_time_adds_up_over_the_parts_of_a_run() -> None:
    callback = SaveLast()
    callback.load_state_dict({"elapsed": 12.5})
    assert callback.state_dict() == {"elapsed": 12.5}
