"""One line for a wrong setting: the key, the cause, the nearest valid name, the file."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from panbench.errors import UserError


@dataclass(frozen=True)
class Setting:
    """One key as a user wrote it.

    Attributes:
        key: dotted, without the ``init_args`` in between ("model.head.num_queries").
        value: the scalar, or None for a mapping or list.
        where: "FILE:LINE" or "command line".
        owner: path of the class whose argument it is; "" where that is not known.
    """

    key: str
    value: str | None
    where: str
    owner: str = ""

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def parent(self) -> str:
        return self.key.rpartition(".")[0]


def explain(message: str, argv: Sequence[str], folder: Path, groups: Sequence[str], trainer: type) -> str:
    """The line to show for a parser's error.

    Args:
        message: as jsonargparse words it; often several lines, and without the place.
        argv: the command line.
        folder: what relative paths on it are relative to (the parser changes the working folder while it reads a file).
        groups: names of the parser's own keys, dotted.
        trainer: the class behind the key ``trainer``.
    """
    try:
        settings = list(_settings(argv, folder))
    except UserError as error:
        return str(error)
    path, reason, class_path = _innermost(message)
    unknown = re.search(r"[Oo]ption '([^']+)'", reason) or re.search(r"[Uu]nrecognized arguments: --([\w.]+)", reason)
    if unknown:
        name = unknown[1].rpartition(".")[2]
        valid = _names_of({s.parent: s.owner for s in settings if s.owner}, groups, trainer)
        for setting in reversed(settings):
            if setting.name == name and setting.parent.startswith(path):
                known = valid(setting.parent)
                if name not in known:
                    return _unknown(setting.key, setting.where, setting.parent, known)
        return _unknown(unknown[1], "", path, class_arguments(class_path) if class_path else valid(path))

    missing = re.search(r"""(?:required: |[Kk]ey "(?=.+" is required))([^"]+)""", reason)
    if missing:
        given = any(token.split("=")[0] in ("-c", "--config") for token in argv)
        hint = "" if given else "; start from a config: --config configs/ligs_scannet.yaml"
        return f"{path + '.' if path else ''}{missing[1]} is not set{hint}"

    place = next((f" ({s.where})" for s in reversed(settings) if s.key == path), "")
    return f"{path + ': ' if path else ''}{_cause(reason, class_path)}{place}"


def _innermost(message: str) -> tuple[str, str, str]:
    """The dotted key, the reason and the class that a parser's tree of complaints ends in.

    The tree is indented, has a branch for each type that was tried, and echoes the value at its end.
    """
    keys: list[str] = []
    reasons: list[str] = []
    class_path = ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if text.startswith("Given value"):
            break
        if key := re.match(r'(?:Parser|Problem in) key "([^"]+)":\s*(.*)', text):
            keys.append(key[1])
            text = key[2]
        elif given := re.match(r"Problem with given class_path '([^']+)':\s*(.*)", text):
            class_path, text = given[1], given[2]
        if text and not text.startswith(("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>")):
            reasons.append(text)
    return ".".join(keys), "; ".join(dict.fromkeys(reasons)) or message.strip(), class_path


def _unknown(key: str, where: str, parent: str, known: Sequence[str]) -> str:
    name = key.rpartition(".")[2]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        hint = f"did you mean {parent + '.' if parent else ''}{near[0]}?"
    else:
        hint = f"known: {', '.join(sorted(known))}" if known else "no such key"
    return f"unknown key {key}: {hint}" + (f" ({where})" if where else "")


def _cause(reason: str, class_path: str) -> str:
    """A reason in plain words."""
    if file := re.search(r"Expected a path but (\S+) either not accessible or invalid", reason):
        return f"there is no file {file[1]}, and it names no class; a path is relative to the file it stands in"
    if class_path and re.search(r"has no attribute|No module named|[Uu]nexpected import path", reason):
        return _wrong_class(class_path, reason)
    reason = re.sub(r"<class '([^']+)'>", lambda m: m[1].rpartition(".")[2], reason)
    return re.sub(r"Expected an? (.+)\. Got value: (.+)", r"expected \1, got \2", reason)


def _wrong_class(path: str, cause: str) -> str:
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        parent, _, last = module_name.rpartition(".")
        try:
            near = _submodules_like(last, parent)
        except ImportError:
            near = []
        hint = f"; did you mean {parent}.{near[0]}?" if near else ""
        return f"there is no module {module_name}{hint}"
    if hasattr(module, name):
        return f"{path}: {cause}"
    classes = [n for n, value in vars(module).items() if inspect.isclass(value)]
    near = difflib.get_close_matches(name, classes, n=1, cutoff=0.5)
    hint = f"did you mean {module_name}.{near[0]}?" if near else f"it has {', '.join(sorted(classes)) or 'no classes'}"
    return f"{module_name} has no class {name}; {hint}"


def _submodules_like(name: str, package: str) -> list[str]:
    folders = list(getattr(importlib.import_module(package), "__path__", [])) if package else []
    stems = [p.stem for folder in folders for p in Path(folder).iterdir() if not p.name.startswith(("_", "."))]
    return difflib.get_close_matches(name, stems, n=1, cutoff=0.5)


def _names_of(owners: dict[str, str], groups: Sequence[str], trainer: type) -> Callable[[str], list[str]]:
    """Function from a dotted parent to the names that are valid below it."""

    def names(parent: str) -> list[str]:
        if parent in owners:
            return class_arguments(owners[parent])
        if parent == "trainer":
            return list(inspect.signature(trainer).parameters)
        prefix = parent + "." if parent else ""
        return sorted({g[len(prefix) :].partition(".")[0] for g in groups if g.startswith(prefix)} - {""})

    return names


def class_arguments(class_path: str) -> list[str]:
    """Names of the constructor's arguments, through ``**kwargs`` up the bases; [] if the class cannot be imported."""
    module, _, name = class_path.rpartition(".")
    try:
        cls: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    out: dict[str, None] = {}
    for base in inspect.getmro(cls):
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        out |= dict.fromkeys(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(out)


def _settings(argv: Sequence[str], folder: Path) -> Iterator[Setting]:
    """Every key of the configs and of the command line, in the order in which they take effect."""
    tokens = list(argv)
    for i, token in enumerate(tokens):
        if not token.startswith("-"):
            continue
        option, equals, value = token.partition("=")
        if not equals:
            following = tokens[i + 1] if i + 1 < len(tokens) else ""
            value = "" if following.startswith("--") else following
        key = option.lstrip("-")
        if key in ("c", "config"):
            if value:
                yield from _of_file(Path(value), folder, "")
            continue
        key = _plain(key)
        yield Setting(key, value, "command line")
        if value.endswith((".yaml", ".yml")) and (folder / value).is_file():
            yield from _of_file(Path(value), folder, key)


def _of_file(path: Path, folder: Path, prefix: str) -> Iterator[Setting]:
    try:
        node = yaml.compose((folder / path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{place}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if node is not None:
        yield from _of_node(node, path, folder, prefix, "")


def _of_node(node: yaml.Node, path: Path, folder: Path, prefix: str, owner: str) -> Iterator[Setting]:
    if isinstance(node, yaml.ScalarNode):
        if node.value.endswith((".yaml", ".yml")) and (folder / path.parent / node.value).is_file():
            yield from _of_file(path.parent / node.value, folder, prefix)
        return
    if not isinstance(node, yaml.MappingNode):
        return
    pairs: list[tuple[yaml.ScalarNode, yaml.Node]] = [(k, v) for k, v in node.value if isinstance(k, yaml.ScalarNode)]
    names = {k.value: v for k, v in pairs}
    class_path = names.get("class_path")
    if isinstance(class_path, yaml.ScalarNode):
        line = class_path.start_mark.line + 1
        yield Setting(prefix, class_path.value, f"{path}:{line}")
        if isinstance(names.get("init_args"), yaml.Node):
            yield from _of_node(names["init_args"], path, folder, prefix, class_path.value)
        for k, _ in pairs:
            if k.value not in ("class_path", "init_args", "dict_kwargs"):
                yield Setting(f"{prefix}.{k.value}", None, f"{path}:{k.start_mark.line + 1}", class_path.value)
        return
    for k, v in pairs:
        key = f"{prefix}.{k.value}" if prefix else k.value
        value = v.value if isinstance(v, yaml.ScalarNode) else None
        yield Setting(key, value, f"{path}:{k.start_mark.line + 1}", owner)
        yield from _of_node(v, path, folder, key, "")


def _plain(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != "init_args")
