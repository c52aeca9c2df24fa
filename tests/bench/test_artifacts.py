from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from panbench.bench.artifacts import MANIFEST, fetch, upload
from panbench.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name, content in {
        "result.json": b"{}",
        "results/run.strict.json": b"{ }",
        "predictions/semantic/0.png": bytes(range(256)) * 400,
        "predictions/semantic/1.png": b"",
        "checkpoints/last.ckpt": b"large",
        "metrics.csv.part": b"half",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WANTED = {"result.json", "results/run.strict.json", "predictions/semantic/0.png", "predictions/semantic/1.png"}


@pytest.mark.parametrize("kind", ["folder", "file URL", "memory"])
def test_what_is_fetched_is_what_was_uploaded(run: Path, tmp_path: Path, kind: str) -> None:
    url = {"folder": f"{tmp_path}/copy", "file URL": f"file://{tmp_path}/copy", "memory": f"memory://{tmp_path.name}"}[
        kind
    ]
    assert upload(run, url) == 256 * 400 + 5
    assert fetch(url, tmp_path / "back") == 256 * 400 + 5
    assert contents(tmp_path / "back") == {name: data for name, data in contents(run).items() if name in WANTED}
    assert upload(run, url) == 0
    assert fetch(url, tmp_path / "back") == 0


def test_only_what_differs_is_sent_and_what_is_gone_is_removed(run: Path, tmp_path: Path) -> None:
    upload(run, str(tmp_path / "copy"))
    (run / "result.json").write_text("[]")  # as long as before
    (run / "results/run.strict.json").unlink()
    assert upload(run, str(tmp_path / "copy")) == 2
    assert contents(tmp_path / "copy").keys() == (WANTED | {MANIFEST}) - {"results/run.strict.json"}
    assert (tmp_path / "copy/result.json").read_text() == "[]"


def test_some_files_alone_can_be_fetched(run: Path, tmp_path: Path) -> None:
    upload(run, str(tmp_path / "copy"))
    fetch(str(tmp_path / "copy"), tmp_path / "back", only=("result.json", "results/*"))
    assert contents(tmp_path / "back").keys() == {"result.json", "results/run.strict.json"}


def test_a_copy_without_its_manifest_is_not_taken_for_whole(run: Path, tmp_path: Path) -> None:
    upload(run, str(tmp_path / "copy"))
    (tmp_path / "copy" / MANIFEST).unlink()
    with pytest.raises(UserError, match="no whole copy of a run there"):
        fetch(str(tmp_path / "copy"), tmp_path / "back")


def test_a_damaged_file_is_noticed_and_mended(run: Path, tmp_path: Path) -> None:
    upload(run, str(tmp_path / "copy"))
    damaged = tmp_path / "copy/predictions/semantic/0.png"
    damaged.write_bytes(b"\1" + damaged.read_bytes()[1:])
    with pytest.raises(UserError, match=r"0\.png: not what was uploaded"):
        fetch(str(tmp_path / "copy"), tmp_path / "back")
    assert "predictions/semantic/0.png" not in contents(tmp_path / "back")
    damaged.write_bytes(b"short")
    assert upload(run, str(tmp_path / "copy")) == 256 * 400
    fetch(str(tmp_path / "copy"), tmp_path / "back")
    assert contents(tmp_path / "back").keys() == WANTED


def test_an_upload_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """300 MB, so that the kill falls in the middle; what was noted as sent is not sent again."""
    folder, copy = tmp_path / "run", tmp_path / "copy"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i}.bin").write_bytes(os.urandom(5 * 2**20))
    program = (
        "import sys; from pathlib import Path; from panbench.bench.artifacts import upload\n"
        "upload(Path(sys.argv[1]), sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(folder), str(copy)]
    process = subprocess.Popen(command)
    journal = copy / "upload.json.journal"
    end = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size > 300):
        assert time.monotonic() < end
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (copy / MANIFEST).exists()
    noted = len(json.loads(journal.read_text())["files"])
    assert 0 < noted < 60
    assert upload(folder, str(copy)) == (60 - noted) * 5 * 2**20
    fetch(str(copy), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    assert contents(copy).keys() == contents(folder).keys() | {MANIFEST}


def test_a_manifest_cannot_write_outside_the_folder(run: Path, tmp_path: Path) -> None:
    upload(run, str(tmp_path / "copy"))
    manifest = tmp_path / "copy" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"result.json"', '"../result.json"'))
    with pytest.raises(UserError, match="outside the copy"):
        fetch(str(tmp_path / "copy"), tmp_path / "back")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/proc/nowhere/copy", "/proc/nowhere/copy: No such file or directory"),
        ("nosuch://bucket/run", "nosuch://bucket/run: Protocol not known: nosuch"),
    ],
)
def test_storage_that_does_not_work_is_told_in_one_line(run: Path, url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as problem:
        upload(run, url)
    assert "\n" not in str(problem.value)


def test_a_folder_that_is_not_there_cannot_be_uploaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing: no such folder to upload"):
        upload(tmp_path / "nothing", str(tmp_path / "copy"))


def test_a_task_uploads_the_run_its_receipt_names(run: Path, tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_text(json.dumps({"run": str(run)}))
    command = [sys.executable, "-m", "panbench.bench.artifacts"]
    subprocess.run([*command, str(tmp_path / "receipt.json"), str(tmp_path / "copy")], check=True)
    assert contents(tmp_path / "copy").keys() == WANTED | {MANIFEST}
    failed = subprocess.run([*command, str(tmp_path / "no.json"), "x"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"error: {tmp_path}/no.json: not the receipt of a run")
