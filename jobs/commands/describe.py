"""`fuxi config --describe`: every setting with its type, unit, bounds, default and description; and the page of them.

`python -m jobs.commands.describe docs/configuration.md` writes the page's reference anew.
"""

import dataclasses
import json
import re
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fuxi_beta.config import BOUNDS, Unit, bounds_in_words
from jobs.config import Config, nearest
from jobs.runtime.screen import Screen, screen
from pipelines.errors import InputError

MARK = "<!-- What follows is written by `make reference` from the code. -->\n"
_PLAIN = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "null"}
_MANY = {int: "integers", float: "numbers", str: "texts"}


@dataclass(frozen=True)
class Setting:
    """A key of the configuration. values: its type, bounds and unit in words."""

    key: str
    default: Any
    values: str
    description: str

    @property
    def section(self) -> str:
        """The first part of the key; empty for a key of no section."""
        return self.key.partition(".")[0] if "." in self.key else ""


def settings() -> list[Setting]:
    """Every setting, in the order of the schema."""
    return list(_settings(Config, Config(), ""))  # type: ignore[call-arg]


def sections() -> dict[str, str]:
    """What each section is about."""
    return {name: " ".join((kind.__doc__ or "").split()) for name, kind in _sections(Config)}


def _settings(kind: Any, default: Any, prefix: str) -> Iterator[Setting]:
    for name, (annotation, metadata, description) in _fields(kind).items():
        value = getattr(default, name)
        if _is_section(annotation):
            yield from _settings(annotation, value, f"{prefix}{name}.")
        else:
            yield Setting(f"{prefix}{name}", _plain(value), _values(annotation, metadata), description)


def _fields(kind: Any) -> dict[str, tuple[Any, Sequence[Any], str]]:
    """Name -> type, its metadata and description, of a model of pydantic or a dataclass of `fuxi_beta.config`."""
    if issubclass(kind, BaseModel):
        found = kind.model_fields.items()
        return {name: (one.annotation, one.metadata, one.description or "") for name, one in found}
    hints = get_type_hints(kind, include_extras=True)
    return {
        one.name: (hints[one.name], [one.metadata["bounds"]], one.metadata["description"])
        for one in dataclasses.fields(kind)
    }


def _sections(kind: Any) -> Iterator[tuple[str, Any]]:
    for name, (annotation, *_) in _fields(kind).items():
        if _is_section(annotation):
            yield name, annotation


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation))


def _values(annotation: Any, metadata: Sequence[Any]) -> str:
    """A type with its bounds and its unit in words."""
    if get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        metadata = [*inner, *metadata]
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        texts = [_values(kind, metadata if kind is not str else ()) for kind in kinds]
        return "; or ".join([*texts, *["null"] * (len(kinds) < len(get_args(annotation)))])
    bounds = _bounds(metadata)
    unit = "".join(f" ({one.name})" for one in metadata if isinstance(one, Unit))
    return ", ".join([f"{_kind(annotation)}{unit}", *([bounds_in_words(bounds)] if bounds else [])])


def _bounds(metadata: Sequence[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in metadata:
        parts = one.metadata if isinstance(one, FieldInfo) else [one]
        for part in parts:
            names = part if isinstance(part, dict) else {name: getattr(part, name, None) for name in BOUNDS}
            found |= {name: bound for name, bound in names.items() if bound is not None}
    return found


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        *first, last = (f"`{choice}`" for choice in arguments)
        return f"{', '.join(first)} or {last}" if first else last
    if origin is tuple and arguments[-1] is Ellipsis:
        inner = arguments[0]
        return f"list of {_MANY[inner]}" if inner in _MANY else f"list of {_kind(inner).replace(' or ', ', ')}"
    if origin is tuple:
        return f"{len(arguments)} {_MANY[arguments[0]]}"
    if origin is dict:
        inner = arguments[1]
        return "map to rules" if _is_section(inner) else f"map to {_values(inner, ())}"
    return _PLAIN[annotation]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def render(config: Config, prefix: str, shown: Screen | None = None) -> None:
    """Print the settings whose keys begin with a prefix, with the values in force. InputError if there are none."""
    found = [one for one in settings() if one.key.startswith(prefix)]
    if not found:
        keys = [one.key for one in settings()] + list(sections())
        raise InputError(f"--describe {prefix}: no key begins so: did you mean {nearest(prefix, keys)}?")
    shown, about, section = shown or screen(), sections(), ""
    for one in found:
        if one.section != section:
            section = one.section
            shown.say(f"{section}: {about[section]}\n", style="bold", indent=2)
        value = _plain(_in_force(config, one.key))
        default = f" (default {json.dumps(one.default)})" if value != one.default else " (the default)"
        shown.say(f"{one.key} = {json.dumps(value)}{default}", style="bold", indent=4)
        shown.say(f"    {one.description}\n    {one.values}\n", indent=4)


def _in_force(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def as_markdown() -> str:
    """The reference: a heading and a table for each section."""
    about, found, parts = sections(), settings(), []
    for section in dict.fromkeys(one.section for one in found):
        rows = [
            f"| `{one.key}` | `{json.dumps(one.default)}` | {one.values} | {_linked(one.description)} |"
            for one in found
            if one.section == section
        ]
        head = [f"## {section}", "", _linked(about[section]), ""] if section else []
        parts += [*head, "| key | default | values | meaning |", "| --- | --- | --- | --- |", *rows, ""]
    return "\n".join(parts)


def _linked(text: str) -> str:
    """Pages of the documentation as links from one of them."""
    return re.sub(r"docs/([\w/-]+\.md)(#[\w-]+)?", r"[\1](\1\2)", text)


def write_page(file: Path) -> None:
    """Replace the reference in a page, which follows a mark."""
    text, mark, _ = file.read_text().partition(MARK)
    if not mark:
        raise InputError(f"{file} has no line {MARK.strip()!r}: add it where the reference begins")
    file.write_text(f"{text}{MARK}\n{as_markdown()}")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
