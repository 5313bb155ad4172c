"""Who has asked to be forgotten: a list of keyed hashes against which every later day reads its logs.

`<workspace>/forgotten/` holds `key.json`, made once from the operating system's randomness, and Parquet files of
hashes. The ids themselves would keep what must go. Whoever has the list alone learns nothing from it; whoever has the
key too can ask of an id they already know whether it is there, which is exactly what reading a day's logs needs.

A batch of logs is compared in two steps: a 32-bit hash of every listener, vectorised, and the 128-bit digest of those
few that pass. Without entries nothing is computed.
"""

import hashlib
import json
import re
import secrets
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories.buckets import user_hash
from pipelines.schema import id_type

SLOT, DIGEST = "slot", "digest"
DIGEST_BYTES = 16
_SCHEMA = pa.schema([(SLOT, pa.uint32()), (DIGEST, pa.binary(DIGEST_BYTES))])
_MAX_FILES = 32
_FILTER_BITS = 22
_SHORT = 6  # characters; a shorter id may be any number


@dataclass(frozen=True)
class Forgotten:
    """The list in memory, ascending by slot."""

    key: bytes
    slots: np.ndarray  # uint32 [N]
    digests: np.ndarray  # uint8 [N, 16]

    def __len__(self) -> int:
        return len(self.slots)

    def mask(self, user_id: pa.Array) -> np.ndarray:
        """Which rows are of listeners on the list, bool. user_id: int64 or string; null is nobody."""
        if not len(self) or not len(user_id):
            return np.zeros(len(user_id), bool)
        if not pa.types.is_integer(user_id.type):
            encoded = user_id.dictionary_encode()
            listed = np.append(self._of(encoded.dictionary), False)  # the last one for null
            return listed[encoded.indices.fill_null(len(listed) - 1).to_numpy(zero_copy_only=False)]
        if not user_id.null_count:
            return self._of(user_id)
        return self._of(user_id.fill_null(0)) & user_id.is_valid().to_numpy(zero_copy_only=False)

    def any_of(self, users: Sequence[int | str], user_id_type: str) -> bool:
        """Whether any of some ids is on the list."""
        return bool(users) and bool(self.mask(pa.array(users, id_type(user_id_type))).any())

    @cached_property
    def _filter(self) -> np.ndarray:
        there = np.zeros(1 << _FILTER_BITS, bool)
        there[self.slots >> (32 - _FILTER_BITS)] = True
        return there

    def _of(self, ids: pa.Array) -> np.ndarray:
        slots = _slots(ids, self.key)
        listed = np.zeros(len(ids), bool)
        maybe = np.flatnonzero(self._filter[slots >> (32 - _FILTER_BITS)])
        first = np.searchsorted(self.slots, slots[maybe], side="left")
        end = np.searchsorted(self.slots, slots[maybe], side="right")
        known: dict[Any, bool] = {}
        for n in np.flatnonzero(end > first):
            place = maybe[n]
            user = ids[int(place)].as_py()
            if user not in known:
                wanted = np.frombuffer(_digest(user, self.key), np.uint8)
                known[user] = bool((self.digests[first[n] : end[n]] == wanted).all(axis=1).any())
            listed[place] = known[user]
        return listed


def nobody() -> Forgotten:
    """An empty list."""
    return Forgotten(b"", np.zeros(0, np.uint32), np.zeros((0, DIGEST_BYTES), np.uint8))


def load(folder: str) -> Forgotten:
    """The list of a workspace; an empty one if nobody was ever forgotten. InputError if its key is lost."""
    files = _parts(folder)
    if not files:
        return nobody()
    table = pa.concat_tables([storage.read_table(uri) for uri in files]).group_by(_SCHEMA.names).aggregate([])
    table = table.sort_by(SLOT)
    digests = np.frombuffer(b"".join(table[DIGEST].to_pylist()), np.uint8).reshape(-1, DIGEST_BYTES)
    return Forgotten(_key(folder), table[SLOT].to_numpy(), digests)


def add(folder: str, ids: pa.Array) -> int:
    """Put listeners on the list; returns how many were not on it. ids: distinct, int64 or string.

    The caller holds the lease of the list. Killed anywhere, the list holds all of the ids or none.
    """
    known = load(folder)
    key_uri = storage.join(folder, "key.json")
    if not storage.exists(key_uri):
        storage.write_json(key_uri, {"key": secrets.token_hex(32)})
    new = ids.filter(pa.array(~known.mask(ids)))
    key = _key(folder)
    if len(new):
        digests = pa.array([_digest(user, key) for user in new.to_pylist()], pa.binary(DIGEST_BYTES))
        # Sorted, so that the order in which they were given is not kept either.
        table = pa.table({SLOT: _slots(new, key), DIGEST: digests}, schema=_SCHEMA).sort_by(SLOT)
        storage.write_table(storage.join(folder, f"part-{uuid.uuid4().hex}.parquet"), table)
    _compact(folder)
    return len(new)


def _compact(folder: str) -> None:
    """Make one file of many. Killed in between, some hashes are there twice, which changes nothing."""
    files = _parts(folder)
    if len(files) > _MAX_FILES:
        table = pa.concat_tables([storage.read_table(uri) for uri in files]).sort_by(SLOT)
        storage.write_table(storage.join(folder, f"part-{uuid.uuid4().hex}.parquet"), table)
        storage.delete_files(files)


def _parts(folder: str) -> list[str]:
    return [file.uri for file in storage.list_files(folder) if file.uri.endswith(".parquet")]


def _key(folder: str) -> bytes:
    uri = storage.join(folder, "key.json")
    if not storage.exists(uri):
        raise InputError(f"{uri} is lost, without it the hashes beside it say nothing: restore it from a backup")
    return bytes.fromhex(storage.read_json(uri)["key"])


def _slots(ids: pa.Array, key: bytes) -> np.ndarray:
    """32 bits of each id that only the key makes: enough to tell nearly everybody from those on the list."""
    shift, factor = (int.from_bytes(key[place : place + 8], "little") for place in (0, 8))
    mixed = (user_hash(ids).view(np.uint64) ^ np.uint64(shift)) * np.uint64(factor | 1)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def _digest(user: int | str, key: bytes) -> bytes:
    return hashlib.blake2b(str(user).encode(), key=key, digest_size=DIGEST_BYTES).digest()


def possible_users(text: str, column: str, user_id_type: str) -> list[int | str]:
    """Whose row a rejected row may be, from its text as the quarantine keeps it. column: the logs' name of the user id.

    A JSON object says it in that column. Of anything else every token counts, so that rather one row too many goes.

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
    found = _as_ids(value, user_id_type)
    return found or _tokens(value if isinstance(value, str) else json.dumps(value), user_id_type)


def _as_ids(value: Any, user_id_type: str) -> list[int | str]:
    if user_id_type == "string":
        return sorted({value, value.strip()}) if isinstance(value, str) else []
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", value) else None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return list(_in_range([int(value)])) if whole and not isinstance(value, bool) else []


def _tokens(text: str, user_id_type: str) -> list[int | str]:
    if user_id_type == "string":
        pieces = [text, *re.findall(r'"((?:[^"\\]|\\.)*)"', text)]
        for separators in (r"[,;\t|]", r"\s", r"[^\w.@:+/-]", r"\W"):
            pieces += re.split(separators, text)
        return sorted({piece.strip().strip("\"'") for piece in pieces} - {""})
    numbers = {int(digits) for digits in re.findall(r"[0-9]{1,19}", text)}
    numbers |= {-int(digits) for digits in re.findall(r"-([0-9]{1,19})", text)}
    return sorted(_in_range(numbers))


def _in_range(numbers: Iterable[int]) -> Iterable[int]:
    return (number for number in numbers if -(2**63) <= number < 2**63)


def without_names(text: str, named: Any) -> str:
    """A message in which ids are blotted out. named: whether a token is the id of somebody who is to be forgotten.

    Short ids only after the words "listener" or "user": 12 may be anything.
    """

    def blot(found: re.Match[str]) -> str:
        word, token = found.group(1) or "", found.group(2)
        bare = token.rstrip(".:")
        if named(bare) and (word or len(bare) >= _SHORT):
            return f"{word}(forgotten){token[len(bare) :]}"
        return found.group(0)

    return re.sub(r"((?:listener|user(?:_id)?)[\s=:'\"]+)?([^\s\"',;()\[\]{}<>=]+)", blot, text, flags=re.IGNORECASE)
