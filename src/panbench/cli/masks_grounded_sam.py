"""``panbench masks grounded-sam``: pseudo-masks of a scene by GroundingDINO and SAM."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

_log = logging.getLogger(__name__)


def add_to(parser: argparse.ArgumentParser) -> None:
    """State the options."""
    parser.add_argument("scene", type=Path, help="the scene's folder; its classes.json has the prompts")
    parser.add_argument("--gdino", required=True, metavar="MODEL", help="folder, or IDEA-Research/grounding-dino-base")
    parser.add_argument("--sam", required=True, metavar="MODEL", help="folder, or facebook/sam-vit-huge")
    parser.add_argument("--out", default="gsam", metavar="NAME", help="makes masks_NAME in the scene (default: gsam)")
    parser.add_argument("--box-threshold", type=float, default=0.20, help="of a box's best token (default: 0.20)")
    parser.add_argument("--text-threshold", type=float, default=0.25, help="of a phrase's tokens (default: 0.25)")
    parser.add_argument(
        "--largest-box", type=float, default=0.89, help="drop boxes wider and taller than this share (default: 0.89)"
    )
    parser.add_argument("--nms", type=float, default=1.0, metavar="IOU", help="drop doubles beyond; default 1: none")
    parser.add_argument(
        "--strict-phrase", action="store_true", help="a phrase must be a whole prompt, not a part of one"
    )
    parser.add_argument("--frames", choices=("train", "test", "all"), default="all", help="default: all")
    parser.add_argument("--batch", type=int, default=1, help="pictures that the detector sees at a time (default: 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Make the masks, or those that are missing; returns the exit status.

    Raises:
        UserError: the scene, the models or the masks' folder is not as it must be.
    """
    from rich.progress import track

    from panbench.cli.console import stderr
    from panbench.data.detect import find_scene, open_found
    from panbench.errors import UserError
    from panbench.masks.grounded_sam import GroundedSam, GroundedSamSettings
    from panbench.masks.mask_set import MaskWriter, set_folder

    if options.batch < 1:
        raise UserError(f"--batch {options.batch} must be at least 1")
    settings = GroundedSamSettings(
        options.box_threshold, options.text_threshold, options.largest_box, options.nms, options.strict_phrase
    )
    found = find_scene(options.scene)
    folder, scene = set_folder(found.folder, options.out), open_found(found)
    model = GroundedSam(options.gdino, options.sam, scene.labels, settings, options.device)
    frames = {"train": scene.train, "test": scene.test, "all": sorted({*scene.train, *scene.test})}[options.frames]
    with MaskWriter(
        folder,
        generator="panbench masks grounded-sam",
        settings=model.description(),
        labels=scene.labels,
    ) as writer:
        done = writer.done()
        left = [index for index in frames if scene.source.name(index) not in done]
        if len(left) < len(frames):
            _log.info("%d of %d frames have their masks already", len(frames) - len(left), len(frames))
        batches = [left[k : k + options.batch] for k in range(0, len(left), options.batch)]
        for batch in track(batches, "masks", console=stderr(), disable=options.quiet):
            images = [scene.source.load(index).color.numpy() for index in batch]
            for index, masks in zip(batch, model.segment(images), strict=True):
                writer.write(scene.source.name(index), masks)
    _log.info("wrote %s: panbench fit ... --data.masks %s", writer.folder, options.out)
    return 0
