from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from panbench.errors import UserError
from panbench.protocol import Protocol, protocol_ids

# A changed hash is a changed protocol: give it a new version instead of editing these.
HASHES = {
    "panoptic-strict@1": "b3c58c0003d65c7d5c3172535c76f6d078d192557ca3182cf7d8d644dc15bb1b",
    "scannet-paper@1": "db38aeb22f9384fb1ab911768ba9d0cb4bd0f8bb967ba120b478a3736651c512",
    "scannetpp-paper@1": "a5563c9f58348d2bb5f598f3033ac9bc96d048a57e35ae647e06906c492b37b6",
}


def test_shipped_protocols_never_change() -> None:
    assert {name: Protocol.load(name).hash for name in protocol_ids()} == HASHES


@pytest.mark.parametrize("name", HASHES)
def test_a_file_holds_the_protocol_it_is_named_after(name: str) -> None:
    assert Protocol.load(name).id == name


CHANGES: dict[str, Any] = {
    "name": "other",
    "version": 2,
    "size": {"divisor": 2, "full_resolution_rows": 968},
    "largest_true_id": 99,
    "segments": "stuff-by-class",
    "iou_threshold": 0.2,
    "matching": "one-to-one",
    "classes": "present",
    "semantic": "pooled",
    "scenes": "mean",
}


@pytest.mark.parametrize("rule", CHANGES)
def test_the_hash_changes_with_every_rule(rule: str) -> None:
    original = Protocol.load("scannet-paper@1")
    rules = {**original.model_dump(), rule: CHANGES[rule]}
    if rule == "matching":
        rules["iou_threshold"] = 0.5
        original = original.model_copy(update={"iou_threshold": 0.5})
    assert Protocol.model_validate(rules).hash != original.hash


def test_every_rule_with_alternatives_is_covered_above() -> None:
    # The others have one value each so far; a second one must be added to CHANGES.
    single = {"description", "frames", "label_space", "void", "coverage"}
    assert set(Protocol.model_fields) == set(CHANGES) | single


def test_the_description_is_not_a_rule() -> None:
    original = Protocol.load("scannet-paper@1")
    assert original.model_copy(update={"description": "in other words"}).hash == original.hash


def test_a_protocol_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Protocol.load("scannet-paper@1").iou_threshold = 0.5  # type: ignore[misc]


def test_one_to_one_matching_needs_a_threshold_of_a_half() -> None:
    rules = {**Protocol.load("panoptic-strict@1").model_dump(), "iou_threshold": 0.4}
    with pytest.raises(ValidationError, match="one-to-one matching needs"):
        Protocol.model_validate(rules)


@pytest.mark.parametrize(
    ("name", "source", "counted"),
    [
        ("scannet-paper@1", (968, 1296), (242, 324)),
        ("scannet-paper@1", (967, 1296), (967, 1296)),
        ("scannet-paper@1", (240, 320), (240, 320)),
        ("scannetpp-paper@1", (779, 1168), (194, 292)),
        ("scannetpp-paper@1", (480, 720), (480, 720)),
        ("panoptic-strict@1", (968, 1296), (242, 324)),
        ("panoptic-strict@1", (779, 1168), (194, 292)),
    ],
)
def test_only_full_resolution_is_counted_at_a_quarter(
    name: str, source: tuple[int, int], counted: tuple[int, int]
) -> None:
    assert Protocol.load(name).size.of(*source) == counted


@pytest.mark.parametrize(("wrong", "hint"), [("scannet-paper", "scannet-paper@1"), ("panoptic-stric@1", "strict@1")])
def test_an_unknown_protocol_is_told_with_the_nearest_name(wrong: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        Protocol.load(wrong)


def test_a_faulty_definition_is_told_with_its_key() -> None:
    with pytest.raises(UserError, match=r"mine.yaml: version: Field required"):
        Protocol.parse("name: mine", "mine.yaml")
    with pytest.raises(UserError, match=r"mine.yaml: not YAML"):
        Protocol.parse("name: [", "mine.yaml")


def test_scoring_needs_neither_lightning_nor_torchmetrics() -> None:
    code = (
        "import sys, panbench.protocol, panbench.cli.eval;"
        "sys.exit(bool({'lightning', 'torchmetrics', 'panbench.models', 'panbench.heads'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
