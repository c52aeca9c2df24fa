"""A wrong setting is one line: the key, the cause, the nearest valid name, the file and line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from panbench.cli.train_help import short_help


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "line"),
    [
        (
            "head/tiny.yaml",
            "num_queries",
            "num_querys",
            "unknown key model.head.num_querys: did you mean model.head.num_queries? (head/tiny.yaml:3)",
        ),
        (
            "main.yaml",
            "    head:",
            "    lrr: 1\n    head:",
            "unknown key model.lrr: did you mean model.lr? (main.yaml:6)",
        ),
        ("main.yaml", "    head:", "    lr: abc\n    head:", "model.lr: expected float, got abc (main.yaml:6)"),
        (
            "trainer.yaml",
            "max_steps",
            "max_step",
            "unknown key trainer.max_step: did you mean trainer.max_steps? (trainer.yaml:4)",
        ),
        ("main.yaml", "trainer:", "trainr:", "unknown key trainr: did you mean trainer? (main.yaml:2)"),
        ("main.yaml", "gain", "gian", "unknown key data.gian: did you mean data.gain? (main.yaml:9)"),
        (
            "main.yaml",
            "TinyMethod",
            "TinyMthod",
            "model: tiny_method has no class TinyMthod; did you mean tiny_method.TinyMethod? (main.yaml:4)",
        ),
        (
            "main.yaml",
            "tiny_method.TinyMethod",
            "panbench.modls.LiGS",
            "model: there is no module panbench.modls; did you mean panbench.models? (main.yaml:4)",
        ),
        (
            "head/tiny.yaml",
            "TinyHead",
            "TinyHaed",
            "model.head: tiny_method has no class TinyHaed; did you mean tiny_method.TinyHead? (head/tiny.yaml:1)",
        ),
        (
            "main.yaml",
            "head/tiny.yaml",
            "head/tinny.yaml",
            "model.head: there is no file head/tinny.yaml, and it names no class; "
            "a path is relative to the file it stands in (main.yaml:6)",
        ),
    ],
)
def test_a_typo_in_a_file(configs: Path, panbench: Callable, file: str, old: str, new: str, line: str) -> None:
    _change(configs / file, old, new)
    answer = panbench("fit", "--config", "main.yaml")
    assert answer.status == 2
    assert answer.err == f"error: {line}\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--model.head.num_querys", "3"), "unknown key model.head.num_querys: did you mean model.head.num_queries?"),
        (("--model.lrr=3",), "unknown key model.lrr: did you mean model.lr?"),
        (("--trainer.max_step", "3"), "unknown key trainer.max_step: did you mean trainer.max_steps?"),
        (("--run.metod", "x"), "unknown key run.metod: did you mean run.method?"),
        (("--fersh",), "unknown key fersh: did you mean fresh?"),
        (("--trainer.max_steps", "many"), "trainer.max_steps: expected int, got many"),
    ],
)
def test_a_typo_on_the_command_line(configs: Path, panbench: Callable, options: tuple[str, ...], line: str) -> None:
    answer = panbench("fit", "--config", "main.yaml", *options)
    assert answer.status == 2
    assert answer.err == f"error: {line} (command line)\n"


def test_a_file_that_is_no_yaml_names_the_line(configs: Path, panbench: Callable) -> None:
    _change(configs / "head" / "tiny.yaml", "  width: 3", "  width: [3")
    answer = panbench("fit", "--config", "main.yaml")
    assert answer.status == 2
    assert answer.err.startswith("error: head/tiny.yaml:5: not YAML: ")
    assert answer.err.count("\n") == 1


def test_a_missing_config_names_the_shipped_ones(configs: Path, panbench: Callable) -> None:
    answer = panbench("fit", "--config", "nope.yaml")
    assert answer.status == 2
    assert "there is no config file nope.yaml" in answer.err
    assert "configs/ligs_scannet.yaml" in answer.err


def test_no_config_says_where_to_start(configs: Path, panbench: Callable) -> None:
    answer = panbench("fit")
    assert (answer.status, answer.err) == (
        2,
        "error: data, model is not set; start from a config: --config configs/ligs_scannet.yaml\n",
    )


def test_an_unknown_protocol_is_found_before_training(configs: Path, panbench: Callable) -> None:
    answer = panbench("fit", "--config", "main.yaml", "--run.protocols", "[panoptic-strct@1]")
    assert answer.status == 2
    assert "did you mean panoptic-strict@1?" in answer.err
    assert not list(configs.glob("runs/**/last.ckpt"))


def test_a_random_seed_is_refused_because_it_names_the_run(configs: Path, panbench: Callable) -> None:
    assert "seed_everything: give a number" in panbench("fit", "--config", "main.yaml", "--seed_everything=true").err


def test_every_option_of_the_short_help_exists(panbench: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        panbench("fit", "--help-all")
    everything = capsys.readouterr().out
    options = re.findall(r"^  (--[a-z_.-]+)", short_help("fit"), flags=re.MULTILINE)
    for option in options:
        # The keys of a scene or a model are those of its class, which is not known here.
        if not option.startswith(("--data.", "--model.")) and option != "--help-all":
            assert option in everything, option
