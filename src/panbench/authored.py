"""Files that people write: reading YAML, and saying in one line what is wrong in it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from panbench.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """A YAML file whose top is a mapping.

    Args:
        path: the file.
        what: what it should be, for the message if it is something else: "a plan: it needs …".

    Raises:
        UserError: if it cannot be read, is no YAML, or something else than a mapping.
    """
    try:
        content: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not {what}")
    return cast("dict[str, Any]", content)


def validated(model: type[Model], content: dict[str, Any], path: Path) -> Model:
    """The content of a file as an object of a model.

    Raises:
        UserError: with the first thing that is wrong: its key, the cause, and for an unknown key the nearest known one.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = sorted(_fields_beside(model, first["loc"]))
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
            message = f"no such key; {f'did you mean {near[0]}?' if near else 'known: ' + ', '.join(known)}"
        elif first["type"] == "missing":
            message = "is missing"
        raise UserError(f"{path}: {f'{where}: ' if where else ''}{message}") from error


def _fields_beside(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Names that were allowed where an unknown key stands: those of the model that the location leads to."""
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            inner = _models_in(model.model_fields[part].annotation)
            model = inner[0] if inner else model
    return set(model.model_fields)


def _models_in(annotation: object) -> list[type[BaseModel]]:
    """Models that an annotation such as ``tuple[Entry, ...]`` or ``Entry | None`` mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]
