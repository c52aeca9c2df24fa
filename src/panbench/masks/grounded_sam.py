"""Grounded-SAM: boxes of named things by GroundingDINO, masks of the boxes by SAM, through ``transformers``.

Settings and compositing are those of PanopticRecon's script, whose masks the paper uses, less its defects: labels are
never JPEG, ids never eight bits wide, scores stay with their boxes. No torchvision is needed or used.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from panbench.errors import UserError
from panbench.masks.detections import (
    Caption,
    Detections,
    captions,
    composite,
    joined,
    read_boxes,
    without_doubles,
    without_huge,
)
from panbench.masks.mask_set import FrameMasks
from panbench.scene import LabelSpace

_BOXES = 32  # that SAM is asked about at a time


@dataclass(frozen=True)
class GroundedSamSettings:
    """What the masks depend on besides models and prompts.

    Attributes:
        box_threshold, text_threshold: smallest probability of a box's best token, and of a token of its phrase.
        largest_box: boxes wider and taller than this share of the picture are dropped, as they hold the whole room.
            0.89 is what the script's rule comes to at ScanNet's 1296 columns: its 0.7 compares boxes in SAM's frame of
            1024 pixels with the picture.
        nms: IoU beyond which the lesser of two boxes of a class goes; 1: none goes, as in the script.
        strict_phrase: a box counts only if its phrase is a whole prompt, as in the script.
    """

    box_threshold: float = 0.20
    text_threshold: float = 0.25
    largest_box: float = 0.89
    nms: float = 1.0
    strict_phrase: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise UserError(f"--{name.replace('_', '-')} {value:g} must lie between 0 and 1")


class GroundedSam:
    """The two models, ready for pictures.

    Args:
        gdino, sam: folders of models in the layout of ``transformers``, or names on the Hugging Face hub.
        labels: whose prompts are asked for.
        device: "auto", "cpu", "cuda".

    Raises:
        UserError: ``transformers`` is missing, a torchvision is in its way, or a model cannot be had.
    """

    def __init__(
        self, gdino: str, sam: str, labels: LabelSpace, settings: GroundedSamSettings, device: str = "auto"
    ) -> None:
        check_libraries()
        from transformers import AutoModelForZeroShotObjectDetection, SamModel

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._device = torch.device(device)
            torch.zeros(1, device=self._device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {device} cannot be used here ({_first(error)}): leave it out") from error
        self.labels, self.settings = labels, settings
        _check_folder(gdino, "--gdino", ("tokenizer.json", "vocab.txt"))
        _check_folder(sam, "--sam", ())
        self._finder, self._reader = _load(AutoModelForZeroShotObjectDetection, gdino, "--gdino", self._device)
        self._cutter, self._cropper = _load(SamModel, sam, "--sam", self._device)
        self._models = {"gdino": _identity(gdino, self._finder), "sam": _identity(sam, self._cutter)}
        try:
            self.captions = captions(labels, lambda text: len(self._reader.tokenizer(text).input_ids))
        except ValueError as error:
            raise UserError(f"{labels.name}: {error}: correct the prompts in its classes.json") from error

    def description(self) -> dict[str, Any]:
        """What decides the masks, for the manifest: models with hashes, thresholds, captions, library."""
        import transformers

        return {
            **asdict(self.settings),
            "models": self._models,
            "captions": [c.text for c in self.captions],
            "transformers": transformers.__version__,
        }

    @torch.inference_mode()
    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[FrameMasks]:
        """Masks of pictures [H, W, 3] of one size."""
        parts = [self._find(images, caption) for caption in self.captions]
        out: list[FrameMasks] = []
        for k, image in enumerate(images):
            found = without_huge(joined([part[k] for part in parts]), self.settings.largest_box)
            if self.settings.nms < 1:
                found = without_doubles(found, self.settings.nms)
            out.append(composite(self._cut(image, found), found.scores, found.classes, self.labels))
        return out

    def _find(self, images: Sequence[NDArray[np.uint8]], caption: Caption) -> list[Detections]:
        """Boxes of a caption's phrases in each picture."""
        inputs = self._reader(images=list(images), text=[caption.text] * len(images), return_tensors="pt")
        answer = self._finder(**inputs.to(self._device))
        tokens = inputs["input_ids"][0].tolist()
        probabilities = answer.logits.float().sigmoid()[..., : len(tokens)].cpu().numpy()
        boxes = answer.pred_boxes.float().cpu().numpy()
        decode: Callable[[Sequence[int]], str] = self._reader.tokenizer.decode
        return [
            read_boxes(
                probabilities[k],
                boxes[k],
                tokens,
                caption,
                decode,
                box_threshold=self.settings.box_threshold,
                text_threshold=self.settings.text_threshold,
                strict=self.settings.strict_phrase,
            )
            for k in range(len(images))
        ]

    def _cut(self, image: NDArray[np.uint8], found: Detections) -> NDArray[np.bool_]:
        """The mask of each box [n, H, W]. The picture is encoded once."""
        height, width = image.shape[:2]
        masks = np.zeros((len(found.scores), height, width), dtype=bool)
        if not len(masks):
            return masks
        boxes = (found.boxes * [width, height, width, height]).tolist()
        inputs = self._cropper(images=image, input_boxes=[boxes], return_tensors="pt")
        embedding = self._cutter.get_image_embeddings(inputs["pixel_values"].to(self._device))
        asked = inputs["input_boxes"].float().to(self._device)
        for start in range(0, len(boxes), _BOXES):
            answer = self._cutter(
                image_embeddings=embedding, input_boxes=asked[:, start : start + _BOXES], multimask_output=False
            )
            whole = self._cropper.image_processor.post_process_masks(
                answer.pred_masks.float().cpu(), inputs["original_sizes"], inputs["reshaped_input_sizes"]
            )[0]
            masks[start : start + len(whole)] = whole[:, 0].numpy()
        return masks


def check_libraries() -> None:
    """Raises: UserError: transformers is missing, or a torchvision of another torch would break it."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError("panbench masks grounded-sam needs transformers: pip install 'panbench[masks]'")
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except (ImportError, RuntimeError, OSError) as error:
            raise UserError(
                f"torchvision is installed but does not fit this torch ({_first(error)}), which breaks transformers: "
                "pip uninstall torchvision, it is not needed"
            ) from error


def _check_folder(name: str, option: str, any_of: tuple[str, ...]) -> None:
    """Raises: UserError: ``name`` means a folder on this machine, and that lacks something."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise UserError(f"{option} {name}: no such folder, and no name on the Hugging Face hub (OWNER/MODEL)")
        return
    missing = [f for f in ("config.json",) if not (folder / f).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("model.safetensors")
    if not any((folder / f).is_file() for f in ("processor_config.json", "preprocessor_config.json")):
        missing.append("preprocessor_config.json")
    if any_of and not any((folder / f).is_file() for f in any_of):
        missing.append(" or ".join(any_of))
    if missing:
        raise UserError(
            f"{option} {folder}: lacks {', '.join(missing)}: give a model in the layout of transformers "
            "(the original .pth files are not; docs/masks.md says where to get them)"
        )


def _load(kind: Any, name: str, option: str, device: torch.device) -> tuple[Any, Any]:
    """A model and its processor, without unpickling anything."""
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoProcessor

    folder = Path(name).expanduser()
    local = folder.is_dir()
    place = str(folder) if local else name
    # The processors of Pillow's kind give the same numbers with and without torchvision.
    slow = {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
    try:
        model = kind.from_pretrained(place, local_files_only=local, use_safetensors=True)
        processor = AutoProcessor.from_pretrained(place, local_files_only=local, **slow)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{option} {name}: cannot be loaded ({_first(error)}): check the name and the connection, or the folder"
        ) from error
    return model.eval().to(device), processor


def _identity(name: str, model: Any) -> dict[str, str]:
    """A model's name and what it is: sha256 of its weights, or its revision on the hub."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return {"name": name, "revision": str(getattr(model.config, "_commit_hash", "") or "")}
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return {"name": folder.resolve().name, "sha256": digest.hexdigest()}


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
