"""Verbs of a verb: ``panbench data check``, ``panbench masks score``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence


def run_verb(name: str, text: str, verbs: Mapping[str, tuple[str, str]], argv: Sequence[str]) -> int:
    """Run ``panbench NAME VERB ...``; returns the exit status.

    Args:
        name: the first verb. text: what it does, for its ``--help``.
        verbs: of each second verb its module, and what it does. A module has ``add_to(parser)``, which states the
            options and imports nothing heavy, and ``run(options) -> exit status``.
        argv: what follows the first verb.
    """
    parser = argparse.ArgumentParser(prog=f"panbench {name}", description=text)
    choices = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (module, what) in verbs.items():
        options = choices.add_parser(verb, help=what, description=what[0].upper() + what[1:] + ".")
        importlib.import_module(module).add_to(options)
    args = parser.parse_args(list(argv))
    return int(importlib.import_module(verbs[args.verb][0]).run(args))
