"""User ids in free text: those that a rejected row may have, and messages from which some ids are removed."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

_LONG_ID = 6
"""Characters from which a token of a message is taken for an id by itself; a shorter one may be any number."""


def possible_users(text: str, column: str, user_id_type: str) -> list[int | str]:
    """The user ids that a rejected row may have, from its text in the quarantine. column: the logs' name of user_id.

    A JSON object has its user id in that column. In any other text every token may be one: a row too many is dropped
    rather than a row too few.

    >>> possible_users('{"user_id": " 12", "item_id": 5}', "user_id", "int64")
    [12]
    >>> possible_users('12,5,oops,1,2,3', "user_id", "int64")
    [1, 2, 3, 5, 12]
    >>> possible_users('{"user_id": null, "item_id": 5}', "user_id", "int64")
    []
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or column not in row:
        return _tokens(text, user_id_type)
    value = row[column]
    if value is None:
        return []
    return as_ids(value, user_id_type) or _tokens(value if isinstance(value, str) else json.dumps(value), user_id_type)


def as_ids(value: Any, user_id_type: str) -> list[int | str]:
    """The user ids that a single value may stand for: of a string, with surrounding blanks and without."""
    if user_id_type == "string":
        return sorted({value, value.strip()}) if isinstance(value, str) else []
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", value) else None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return _in_range([int(value)]) if whole and not isinstance(value, bool) else []


def redacted(text: str, is_forgotten: Callable[[str], bool]) -> str:
    """A message with "(forgotten)" in place of some user ids. is_forgotten: whether a token is one of them.

    Short ids are replaced only after the words "listener" and "user": elsewhere 12 may be any number.
    """

    def replacement(match: re.Match[str]) -> str:
        word, token = match.group(1) or "", match.group(2)
        bare = token.rstrip(".:")
        if is_forgotten(bare) and (word or len(bare) >= _LONG_ID):
            return f"{word}(forgotten){token[len(bare) :]}"
        return match.group(0)

    pattern = r"((?:listener|user(?:_id)?)[\s=:'\"]+)?([^\s\"',;()\[\]{}<>=]+)"
    return re.sub(pattern, replacement, text, flags=re.IGNORECASE)


def _tokens(text: str, user_id_type: str) -> list[int | str]:
    """Everything in a text that may be a user id."""
    if user_id_type == "string":
        pieces = [text, *re.findall(r'"((?:[^"\\]|\\.)*)"', text)]
        for separators in (r"[,;\t|]", r"\s", r"[^\w.@:+/-]", r"\W"):
            pieces += re.split(separators, text)
        return sorted({piece.strip().strip("\"'") for piece in pieces} - {""})
    numbers = {int(digits) for digits in re.findall(r"[0-9]{1,19}", text)}
    numbers |= {-int(digits) for digits in re.findall(r"-([0-9]{1,19})", text)}
    return sorted(_in_range(numbers))


def _in_range(numbers: Iterable[int]) -> list[int | str]:
    return [number for number in numbers if -(2**63) <= number < 2**63]
