"""JSON files that nobody vouches for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from panbench.errors import UserError


def read_json(path: Path, remedy: str, *, missing: str | None = None) -> Any:
    """The content of a JSON file.

    Args:
        remedy: what to do about a damaged file, for the message. missing: about a missing one; None: the same.

    Raises:
        UserError: it is missing or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file: {missing or remedy}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON file ({error}): {remedy}") from error
