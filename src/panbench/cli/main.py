"""The ``panbench`` command: picks the verb, imports nothing heavy before it must."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from panbench import __version__
from panbench.cli.errors import explained
from panbench.cli.train_help import short_help
from panbench.errors import UserError
from panbench.threads import brief_waits

# verb: (module with ``main(argv) -> exit status``, what it does). The four Lightning verbs share one module, which
# gets the verb as its first argument.
VERBS: dict[str, tuple[str, str]] = {
    "fit": ("panbench.cli.train", "train a scene, score it, draw it; the same command resumes"),
    "validate": ("panbench.cli.train", "losses and image quality of a run on the validation frames"),
    "test": ("panbench.cli.train", "render and score the test frames of a run again"),
    "predict": ("panbench.cli.train", "write a run's predictions folder, without scoring it"),
    "eval": ("panbench.cli.eval", "score a predictions folder under a protocol; no training, no GPU"),
    "bench": ("panbench.cli.bench", "run a plan of methods, scenes and seeds, or what is missing of it"),
    "sweep": ("panbench.cli.sweep", "run a W&B sweep file on this machine, without an account"),
    "report": ("panbench.cli.report", "make tables and a site of stored results"),
    "reproduce": ("panbench.cli.reproduce", "run a result again from its record and compare"),
    "results": ("panbench.cli.results", "list, compare, verify, merge and rescore results"),
    "data": ("panbench.cli.data", "check, look at, import and make scenes"),
    "masks": ("panbench.cli.masks", "make, import, measure and change pseudo-masks"),
    "doctor": ("panbench.cli.doctor", "what is installed, which back end is used and why"),
}

_LIGHTNING_VERBS = ("fit", "validate", "test", "predict")


def usage() -> str:
    """The text of ``panbench --help``."""
    verbs = "\n".join(f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items())
    return (
        "usage: panbench VERB ...\n\n"
        "A benchmarking suite for panoptic Gaussian splatting.\n\n"
        f"verbs:\n{verbs}\n\n"
        "  panbench fit --config configs/ligs_scannet.yaml   train on a built-in room (no data needed)\n"
        "  panbench VERB --help                              the options of one verb\n"
        "  panbench --version\n"
    )


@explained
def run(argv: Sequence[str]) -> int:
    """Run one command line; returns the exit status.

    Raises:
        UserError: for an unknown verb, with the nearest known one.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        sys.stdout.write(f"panbench {__version__}\n")
        return 0
    verb, rest = argv[0], list(argv[1:])
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(VERBS)}"
        raise UserError(f"unknown verb {verb!r}: {hint}")
    if verb in _LIGHTNING_VERBS and {"-h", "--help"} & set(rest):
        sys.stdout.write(short_help(verb))
        return 0
    importlib.import_module("panbench.cli.console").set_up_logging()
    module = importlib.import_module(VERBS[verb][0])
    return int(module.main([verb, *rest] if verb in _LIGHTNING_VERBS else rest) or 0)


def main() -> None:
    """Entry point of the ``panbench`` script."""
    brief_waits()  # before torch is imported
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
