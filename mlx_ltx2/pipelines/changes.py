"""`NAME=VALUE` -> an option of a request, read by the type that its field has."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mlx_ltx2.errors import RequestError
from mlx_ltx2.pipelines.request import ALIASES, ImageInput, LoraInput, ReferenceInput, Request

_SINGULAR = {"image": "images", "lora": "loras", "reference": "references"}
_TYPES = typing.get_type_hints(Request)
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Request)}
_SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_changes(texts: Iterable[str], others: Iterable[str] = ()) -> dict[str, Any]:
    """Field -> value of several NAME=VALUE; the last one counts. Names may be those of the official tools.

    Text and paths are taken as they are (a JSON string is unpacked), so that prompt=1984 is text. Numbers, switches
    (true, false), lists (JSON, or separated by commas) and images, LoRAs and references (a path, or JSON) are checked.
    null takes an optional value away. others: names that the caller handles itself, returned as text.
    Raises: RequestError for another form, an unknown name and a value that is not of its field's type.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name:
            raise RequestError(f"--set {text!r}: write NAME=VALUE, for instance seed=7.")
        field = ALIASES.get(name, _SINGULAR.get(name, name))
        if field in others:
            changes[field] = value
            continue
        if field not in _TYPES:
            near = difflib.get_close_matches(name, [*_TYPES, *ALIASES, *others], n=1)
            raise RequestError(f"--set {text}: there is no {name!r}{f'; did you mean {near[0]!r}?' if near else '.'}")
        changes[field] = _value(field, value)
    return changes


def _value(field: str, text: str) -> Any:
    if text.strip() == "null" and (_DEFAULTS[field] is None or _DEFAULTS[field] == ()):
        return _DEFAULTS[field]
    wanted = _kinds(_TYPES[field])
    try:
        for kind, read in _READERS:
            if kind in wanted:
                return read(text)
        return _items(field, wanted[0], text)
    except (ValueError, TypeError) as error:
        raise RequestError(f"--set {field}={text}: {error}.") from None


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a field without None; of a tuple the tuple itself."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(part for part in parts if part is not type(None))


def _text(text: str) -> str:
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        try:
            return str(json.loads(text))
        except ValueError:
            pass  # quotation marks of a prompt
    return text


def _switch(text: str) -> bool:
    if text.strip().lower() not in _SWITCHES:
        raise ValueError("it is true or false")
    return _SWITCHES[text.strip().lower()]


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("it is a whole number") from None


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("it is a number")
    return number


_READERS: tuple[tuple[type, Callable[[str], Any]], ...] = (
    (str, _text),
    (bool, _switch),
    (int, _whole),
    (float, _number),
)
"""In this order: a path is a text or a Path."""


def _items(field: str, kind: Any, text: str) -> Any:
    """Lists of numbers, and inputs with their settings."""
    if typing.get_origin(kind) is not tuple:
        return _input(kind, _json_or_path(text))
    inner = typing.get_args(kind)[0]
    if inner in (int, float):
        read = _whole if inner is int else _number
        return tuple(read(part) for part in text.strip().strip("[]()").replace(",", " ").split())
    value = _json_or_path(text)
    return tuple(_input(inner, item) for item in (value if isinstance(value, list) else [value]))


def _json_or_path(text: str) -> Any:
    if text.lstrip()[:1] not in ("[", "{", '"'):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is a path or JSON, and this is no JSON ({error})") from None


def _input(kind: type[ImageInput | LoraInput | ReferenceInput], value: Any) -> Any:
    """An image, a LoRA or a reference out of a path, [path, settings ...] or {"path": ..., settings}."""
    hints = typing.get_type_hints(kind)
    if isinstance(value, str):
        value = [value]
    # Settings may be left out from the end on, so a list may be shorter than the hints.
    given = dict(zip(hints, value, strict=False)) if isinstance(value, list) and len(value) <= len(hints) else value
    if not isinstance(given, dict) or "path" not in given:
        raise ValueError(f"it is a path, or JSON with {', '.join(hints)}, and not {json.dumps(value)}")
    for name, setting in given.items():
        if name not in hints:
            raise ValueError(f"there is no setting {name!r}; {', '.join(hints)} can be given")
        kinds = _kinds(hints[name]) + ((int,) if float in _kinds(hints[name]) else ())
        unset = setting is None and type(None) in typing.get_args(hints[name])
        if not unset and (isinstance(setting, bool) or not isinstance(setting, kinds)):
            wanted = " or ".join(k.__name__ for k in _kinds(hints[name]) if k is not Path)
            raise ValueError(f"{name} is of type {wanted}, and not {json.dumps(setting)}")
    return kind(**given)
