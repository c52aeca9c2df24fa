"""The result of one scene: scores, the counts they came from, and where everything came from."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from panbench.errors import UserError
from panbench.metrics.functional import PairCounts
from panbench.metrics.functional.counts import COLUMNS
from panbench.scene import LabelSpace
from panbench.training.files import write_text

SCHEMA_VERSION = 2


def _nan_for_null(value: object) -> object:
    return math.nan if value is None else value


# JSON has no nan: an undefined score is written as null.
Score = Annotated[float, BeforeValidator(_nan_for_null)]


class StoredCounts(BaseModel):
    """Joint pixel counts as text: int32 rows, little endian, zlib, base64. ``frame`` indexes the result's frames."""

    model_config = ConfigDict(extra="forbid")

    encoding: Literal["int32-le/zlib/base64"] = "int32-le/zlib/base64"
    columns: tuple[str, ...] = COLUMNS
    rows: int
    data: str

    @classmethod
    def pack(cls, counts: PairCounts) -> StoredCounts:
        """Encode counts."""
        raw = np.ascontiguousarray(counts.rows.T, dtype="<i4").tobytes()
        return cls(rows=len(counts), data=base64.b64encode(zlib.compress(raw, 9)).decode())

    def unpack(self) -> PairCounts:
        """Decode the counts.

        Raises:
            ValueError: if the text was damaged.
        """
        try:
            raw = zlib.decompress(base64.b64decode(self.data, validate=True))
        except (zlib.error, ValueError) as error:
            raise ValueError(f"the counts cannot be decoded: {error}") from error
        if len(raw) != 4 * len(COLUMNS) * self.rows:
            raise ValueError(f"the counts have {len(raw)} bytes, not {self.rows} rows")
        return PairCounts.from_rows(np.frombuffer(raw, dtype="<i4").reshape(len(COLUMNS), self.rows).T)


class ClassResult(BaseModel):
    """Scores of one evaluated class, in percent; ``iou`` and ``accuracy`` by the protocol's rule."""

    model_config = ConfigDict(extra="forbid")

    id: int
    name: str
    thing: bool
    present: bool
    PQ: Score
    SQ: Score
    RQ: Score
    true_positives: int
    false_positives: int
    false_negatives: int
    iou: Score
    accuracy: Score
    true_pixels: int
    pred_pixels: int


class InstanceResult(BaseModel):
    """One true thing instance; see :class:`panbench.metrics.functional.InstanceDiagnosis`. ``coverage`` in percent."""

    model_config = ConfigDict(extra="forbid")

    true_id: int
    true_class: int
    class_name: str
    pixels: int
    coverage: Score
    best_id: int
    best_class: int
    parts: list[tuple[int, float]]
    merged_with: list[int]
    frames: int
    switches: int
    verdict: Literal["found", "wrong class", "missed", "split", "merged", "poor"]


class Origin(BaseModel):
    """Where a result came from.

    Attributes:
        trust: ``verified``: panbench ran the method itself; ``submitted``: somebody's predictions, scored here.
        created: UTC time of scoring, ISO 8601.
        run: the run directory, "" without one. It may be gone, or on another machine.
        command: command line that makes the result.
        settings_hash: over everything that decides a result but scene, mask set and seed: results of one method that
            differ in it are two methods.
        masks, mask_hash: name of the pseudo-mask set and sha256 over it; "" where unknown.
        data_hash: of the scene's files.
    """

    model_config = ConfigDict(extra="forbid")

    trust: Literal["verified", "submitted"] = "submitted"
    created: str = ""
    run: str = ""
    command: list[str] = Field(default_factory=list)
    settings_hash: str = ""
    masks: str = ""
    mask_hash: str = ""
    data_hash: str = ""


class BenchCell(BaseModel):
    """Which cell of which plan a result is (:mod:`panbench.bench.plan`).

    Attributes:
        plan: name of the plan.
        cell: key of the cell.
        method, scene: their names in the plan.
        base, head: names of base and head, where the plan crosses them.
        variant: name of the plan's study point, "" outside of studies.
        axis, x: what the study varies, and its value there: a number, or a label in the order of the plan.
        order: position of the study point.
    """

    model_config = ConfigDict(extra="forbid")

    plan: str
    cell: str
    method: str
    scene: str
    base: str = ""
    head: str = ""
    variant: str = ""
    axis: str = ""
    x: float | str | None = None
    order: int = 0


class SceneResult(BaseModel):
    """Everything known about one method on one scene; the unit of tables and of comparison.

    Attributes:
        schema_version: of this record.
        protocol, protocol_hash: ``name@version`` and the hash of its rules.
        dataset, scene, synthetic: the scene; ``synthetic`` marks rendered rooms.
        method, seed, labels, commit, config: as in the predictions' manifest.
        label_space, label_hash: classes that were scored.
        source_size, image_size: (height, width) of the predictions, and at which pixels were counted.
        frames, split_hash: names of the scored frames, and sha256 over them.
        counts: sparse joint counts per frame, from which any protocol of the same image size can be scored.
        metrics: percent: PQ, SQ, RQ, mIoU, mAcc, mCov, mWCov by the protocol; for side-by-side tables always also
            mIoU_pooled (one confusion matrix, absent classes left out), mIoU_frame (the paper's), PQ_paper and
            PQ_strict (the latter two where those protocols count at this image size). Of appearance and geometry PSNR
            [dB], SSIM and, against the true depth of the test frames, depth_l1 and depth_rmse [cm], depth_delta and
            depth_known [percent]; sensor_depth_… where there is a sensor but no truth.
        per_class, instances: the same in detail.
        cost: seconds, bytes, counts by name ("fit_seconds", "peak_memory_bytes", "gaussians", …).
        provenance: hashes of data and masks, versions, back end, ….
        origin: who made it, from what.
        bench: its place in a plan, if it was run by one.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[2] = SCHEMA_VERSION
    protocol: str
    protocol_hash: str
    dataset: str
    scene: str
    synthetic: bool
    method: str
    seed: int | None
    labels: Literal["shared", "own"]
    commit: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    label_space: dict[str, Any]
    label_hash: str
    source_size: tuple[int, int]
    image_size: tuple[int, int]
    frames: list[str]
    split_hash: str
    metrics: dict[str, Score]
    per_class: list[ClassResult]
    instances: list[InstanceResult]
    cost: dict[str, float] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    origin: Origin = Field(default_factory=Origin)
    bench: BenchCell | None = None
    counts: StoredCounts

    def space(self) -> LabelSpace:
        """The label space as an object."""
        return LabelSpace.from_dict(self.label_space)

    def save(self, path: Path) -> Path:
        """Write as JSON; a reader sees the old file or the new one, never a part. Returns ``path``."""
        path = Path(path)
        write_text(path, self.model_dump_json(indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> SceneResult:
        """Read a result of this or an earlier schema.

        Raises:
            UserError: if the file is missing or no result.
        """
        path = Path(path)
        try:
            return cls.parse(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}): score the predictions again") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: is no JSON ({error.msg}): score the predictions again") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "file"
            raise UserError(f"{path}: {where}: {first['msg']}: score the predictions again") from error

    @classmethod
    def parse(cls, text: bytes) -> SceneResult:
        """A result from JSON of this or an earlier schema.

        Raises:
            json.JSONDecodeError: if it is no JSON.
            ValidationError: if it is no result, or one of a later schema.
        """
        try:
            record: object = json.loads(text)
        except UnicodeDecodeError as error:
            raise json.JSONDecodeError("not UTF-8", "", 0) from error
        if isinstance(record, dict) and record.get("schema_version") == 1:
            record = _from_schema_1(cast("dict[str, Any]", record))
        return cls.model_validate(record)


def _from_schema_1(record: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 says of every result where it came from; what schema 1 knew of that was in ``provenance``."""
    provenance = record.get("provenance") or {}
    data = ((record.get("config") or {}).get("data") or {}).get("init_args") or {}
    origin = {
        # Only predictions that panbench made say from which files.
        "trust": "verified" if "data_hash" in provenance else "submitted",
        "masks": str(data.get("masks") or ""),
        "mask_hash": provenance.get("mask_hash", ""),
        "data_hash": provenance.get("data_hash", ""),
    }
    return {**record, "schema_version": SCHEMA_VERSION, "origin": origin}


def split_hash(frames: Sequence[str]) -> str:
    """sha256 over the sorted frame names: results with equal hashes were scored on the same frames."""
    return hashlib.sha256("\n".join(sorted(frames)).encode()).hexdigest()
