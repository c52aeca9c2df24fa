"""What may stand in one table: results of one scene that were scored alike, from the same masks."""

from __future__ import annotations

from typing import NamedTuple

from panbench.protocol.results import SceneResult


class Ground(NamedTuple):
    """What two results must share to be compared. ``masks`` is "own" for methods with labels of their own."""

    dataset: str
    scene: str
    protocol: str
    protocol_hash: str
    split_hash: str
    label_hash: str
    image_size: tuple[int, int]
    masks: str


def ground(result: SceneResult) -> Ground:
    """The ground that a result stands on; ``masks`` is the mask set's hash."""
    return Ground(
        result.dataset,
        result.scene,
        result.protocol,
        result.protocol_hash,
        result.split_hash,
        result.label_hash,
        result.image_size,
        "own" if result.labels == "own" else result.origin.mask_hash,
    )


def obstacles(a: SceneResult, b: SceneResult) -> list[str]:
    """Why two results must not be compared, a phrase a reason; empty if they may.

    A method with labels of its own may stand beside any mask set: the paper grants that to two methods, and the tables
    mark it.
    """
    one, two = ground(a), ground(b)
    reasons: list[str] = []
    for name, left, right in (
        ("dataset", one.dataset, two.dataset),
        ("scene", one.scene, two.scene),
        ("protocol", one.protocol, two.protocol),
        ("image size", _by(one.image_size), _by(two.image_size)),
    ):
        if left != right:
            reasons.append(f"{name}: {left} and {right}")
    if one.protocol == two.protocol and one.protocol_hash != two.protocol_hash:
        reasons.append(f"rules of {one.protocol}: {one.protocol_hash[:8]} and {two.protocol_hash[:8]}")
    if one.scene != two.scene:
        return reasons
    if one.split_hash != two.split_hash:
        only = set(a.frames) ^ set(b.frames)
        reasons.append(f"test frames: {len(a.frames)} and {len(b.frames)}, {len(only)} of them in one only")
    if one.label_hash != two.label_hash:
        reasons.append(f"label space: {_space(a)} and {_space(b)}")
    if "own" not in (one.masks, two.masks) and one.masks != two.masks:
        reasons.append(f"mask set: {_masks(a)} and {_masks(b)}")
    return reasons


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _space(result: SceneResult) -> str:
    return f"{result.label_space.get('name', 'unnamed')} ({result.label_hash[:8]})"


def _masks(result: SceneResult) -> str:
    if not result.origin.mask_hash:
        return "unknown"
    return f"{result.origin.masks or 'unnamed'} ({result.origin.mask_hash[:8]})"
