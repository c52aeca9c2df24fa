"""Protocols: every rule that turns label maps into scores, under a name, a version and a hash."""

from __future__ import annotations

import difflib
import hashlib
import json
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from panbench.errors import UserError
from panbench.metrics.functional import ClassAverage, SegmentRule, SemanticRule


class EvaluationSize(BaseModel):
    """Size at which pixels are counted; the same rule for every frame.

    Predictions of at least ``full_resolution_rows`` rows are reduced to (H // divisor, W // divisor), smaller ones are
    counted at their own size. The truth is brought to that size from its own. Labels are picked, never mixed, with
    Pillow's NEAREST rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    divisor: int = Field(ge=1)
    full_resolution_rows: int = Field(ge=1)
    interpolation: Literal["pillow-nearest"] = "pillow-nearest"

    def of(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) at which predictions of ``height`` × ``width`` are counted."""
        if height < self.full_resolution_rows:
            return height, width
        return height // self.divisor, width // self.divisor


class Protocol(BaseModel):
    """A frozen set of scoring rules.

    Attributes:
        name, version: identity; a changed rule needs a new version.
        description: for people; not part of the hash.
        frames: ``scene-test-frames``: the scene's test frames, all of them.
        label_space: ``scene``: the label space of the scene's truth; its own hash is in every result.
        size: at which size pixels are counted.
        largest_true_id: true instance ids above it are "no instance"; None keeps all.
        segments: how pixels become segments (:func:`panbench.metrics.functional.build_segments`).
        iou_threshold: a pair matches above it (strictly).
        matching: ``every-pair``: all pairs above the threshold match; ``one-to-one``: needs a threshold from 0.5 on,
            where non-overlapping segments can match only once.
        void: ``coco``: pixels without an evaluated true class leave the union; a prediction with more than half of its
            pixels there is no false positive; void in the prediction excuses nothing.
        classes: class mean over ``all`` evaluated classes (an absent one counts 0) or over the ``present`` ones (one
            that neither truth nor prediction shows is left out, one that is only predicted counts 0).
        semantic: mIoU and mAcc as the mean over frames, or ``pooled`` in one confusion matrix.
        coverage: ``largest-intersection``: IoU with the predicted id that overlaps most, whatever its class.
        scenes: how scenes are averaged in tables: plain mean of each scene's values rounded to one decimal
            (``rounded-mean``), or unrounded (``mean``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    version: int = Field(ge=1)
    description: str
    frames: Literal["scene-test-frames"]
    label_space: Literal["scene"]
    size: EvaluationSize
    largest_true_id: int | None = Field(ge=1)
    segments: SegmentRule
    iou_threshold: float = Field(ge=0, lt=1)
    matching: Literal["every-pair", "one-to-one"]
    void: Literal["coco"]
    classes: ClassAverage
    semantic: SemanticRule
    coverage: Literal["largest-intersection"]
    scenes: Literal["rounded-mean", "mean"]

    @model_validator(mode="after")
    def _one_to_one_needs_half(self) -> Protocol:
        if self.matching == "one-to-one" and self.iou_threshold < 0.5:
            raise ValueError(f"one-to-one matching needs iou_threshold >= 0.5, not {self.iou_threshold}")
        return self

    @property
    def id(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def hash(self) -> str:
        """sha256 over the canonical JSON of all rules (everything but the description)."""
        rules = self.model_dump(mode="json", exclude={"description"})
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, name: str) -> Protocol:
        """The shipped protocol ``name@version``.

        Raises:
            UserError: if there is none; names the nearest.
        """
        known = protocol_ids()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"unknown protocol {name!r}: {hint}")
        return cls.parse(
            (files("panbench.protocol") / "definitions" / f"{name}.yaml").read_text(encoding="utf-8"), name
        )

    @classmethod
    def parse(cls, text: str, origin: str) -> Protocol:
        """A protocol from YAML text.

        Raises:
            UserError: with the first offending key, naming ``origin``.
        """
        try:
            return cls.model_validate(yaml.safe_load(text))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "protocol"
            raise UserError(f"protocol {origin}: {where}: {first['msg']}") from error
        except yaml.YAMLError as error:
            raise UserError(f"protocol {origin}: not YAML: {str(error).splitlines()[0]}") from error


def protocol_ids() -> list[str]:
    """``name@version`` of every shipped protocol, sorted."""
    folder = files("panbench.protocol") / "definitions"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
