"""The verb ``panbench masks``: picks its own verb. One file each: ``masks_<verb>.py`` with ``add_to`` and ``run``."""

from __future__ import annotations

from collections.abc import Sequence

from panbench.cli.verbs import run_verb

# verb: (module, what it does)
VERBS: dict[str, tuple[str, str]] = {
    "grounded-sam": ("panbench.cli.masks_grounded_sam", "make the masks of a scene with GroundingDINO and SAM"),
    "import": ("panbench.cli.masks_import", "turn masks that another program made into a mask set"),
    "score": ("panbench.cli.masks_score", "measure a mask set against the ground truth, view by view"),
    "corrupt": ("panbench.cli.masks_corrupt", "make masks with stated error rates from a scene's true labels"),
    "fit-noise": ("panbench.cli.masks_fit_noise", "find the error rates of a mask set, for corrupt"),
    "associate": ("panbench.cli.masks_associate", "give instances ids that are the same object in all frames"),
}


def main(argv: Sequence[str]) -> int:
    """Run ``panbench masks ...``; returns the exit status.

    Raises:
        UserError: with cause and remedy, from the verb.
    """
    return run_verb("masks", "Make, import, measure and change pseudo-masks.", VERBS, argv)
