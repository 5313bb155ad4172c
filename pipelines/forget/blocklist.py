"""The blocklist: keyed hashes of the listeners who asked to be forgotten, with which every later day filters its logs.

`<workspace>/forgotten/` holds `key.json`, made once from the operating system's randomness, and Parquet files of
hashes; ids in clear would keep what must be removed. The list alone says nothing about who is on it. With the key one
can test whether a given id is on it, which is what filtering a day's logs needs.

Membership of a batch is tested in two steps: a vectorised 32-bit hash of every listener, then the 128-bit digest of
the few whose 32-bit hash is on the list. An empty list costs nothing.
"""

import hashlib
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.digests import NOTED_FILE, digest_of, not_listed, note_digests, read_listing
from pipelines.errors import InputError
from pipelines.histories.buckets import user_hash
from pipelines.schema import id_type

SLOT, DIGEST = "slot", "digest"
DIGEST_BYTES = 16
_SCHEMA = pa.schema([(SLOT, pa.uint32()), (DIGEST, pa.binary(DIGEST_BYTES))])
_MAX_FILES = 32
_FILTER_BITS = 22


@dataclass(frozen=True)
class Blocklist:
    """The list in memory, ascending by slot (a listener's 32-bit hash)."""

    key: bytes
    slots: np.ndarray  # uint32 [N]
    digests: np.ndarray  # uint8 [N, 16]

    def __len__(self) -> int:
        return len(self.slots)

    def mask(self, user_id: pa.Array) -> np.ndarray:
        """Which rows are of listeners on the list, bool. user_id: int64 or string; False where it is null."""
        if not len(self) or not len(user_id):
            return np.zeros(len(user_id), bool)
        if not pa.types.is_integer(user_id.type):
            encoded = user_id.dictionary_encode()
            listed = np.append(self._contains(encoded.dictionary), False)  # the last one is for null
            return listed[encoded.indices.fill_null(len(listed) - 1).to_numpy(zero_copy_only=False)]
        if not user_id.null_count:
            return self._contains(user_id)
        return self._contains(user_id.fill_null(0)) & user_id.is_valid().to_numpy(zero_copy_only=False)

    def any_of(self, users: Sequence[int | str], user_id_type: str) -> bool:
        """Whether any of some ids is on the list."""
        return bool(users) and bool(self.mask(pa.array(users, id_type(user_id_type))).any())

    @cached_property
    def _filter(self) -> np.ndarray:
        """A Bloom-like filter of one hash: True at the leading bits of every slot on the list. bool [2^22]."""
        occupied = np.zeros(1 << _FILTER_BITS, bool)
        occupied[self.slots >> (32 - _FILTER_BITS)] = True
        return occupied

    def _contains(self, ids: pa.Array) -> np.ndarray:
        """Which ids are on the list, bool; no id is null."""
        slots = _slots(ids, self.key)
        listed = np.zeros(len(ids), bool)
        candidates = np.flatnonzero(self._filter[slots >> (32 - _FILTER_BITS)])
        start = np.searchsorted(self.slots, slots[candidates], side="left")
        end = np.searchsorted(self.slots, slots[candidates], side="right")
        by_user: dict[Any, bool] = {}
        for n in np.flatnonzero(end > start):
            place = candidates[n]
            user = ids[int(place)].as_py()
            if user not in by_user:
                digest = np.frombuffer(_digest(user, self.key), np.uint8)
                by_user[user] = bool((self.digests[start[n] : end[n]] == digest).all(axis=1).any())
            listed[place] = by_user[user]
        return listed


def empty() -> Blocklist:
    """A list of no listeners."""
    return Blocklist(b"", np.zeros(0, np.uint32), np.zeros((0, DIGEST_BYTES), np.uint8))


def load(folder: str) -> Blocklist:
    """The list of a workspace, empty if no listener was ever forgotten. InputError if its key is lost."""
    files = _files(folder)
    if not files:
        return empty()
    table = pa.concat_tables([storage.read_table(uri) for uri in files]).group_by(_SCHEMA.names).aggregate([])
    table = table.sort_by(SLOT)
    digests = np.frombuffer(b"".join(table[DIGEST].to_pylist()), np.uint8).reshape(-1, DIGEST_BYTES)
    return Blocklist(_key(folder), table[SLOT].to_numpy(), digests)


def add(folder: str, ids: pa.Array) -> int:
    """Put listeners on the list and return how many are new to it. ids: distinct, int64 or string.

    The caller holds the lease of the list. Killed at any point, the list holds all of the ids or none.
    """
    listed = load(folder)
    key_uri = storage.join(folder, "key.json")
    if not storage.exists(key_uri):
        storage.write_json(key_uri, {"key": secrets.token_hex(32)})
        note_digests(folder, {storage.name(key_uri): digest_of(key_uri)})
    new = ids.filter(pa.array(~listed.mask(ids)))
    key = _key(folder)
    if len(new):
        digests = pa.array([_digest(user, key) for user in new.to_pylist()], pa.binary(DIGEST_BYTES))
        # Sorted, so that the file does not keep the order of the ids either.
        table = pa.table({SLOT: _slots(new, key), DIGEST: digests}, schema=_SCHEMA).sort_by(SLOT)
        _write(folder, table)
    _compact(folder)
    note_digests(folder)
    return len(new)


def _compact(folder: str) -> None:
    """Merge many files into one. Killed before the deletion, some hashes are stored twice, which `load` allows."""
    files = _files(folder)
    if len(files) > _MAX_FILES:
        table = pa.concat_tables([storage.read_table(uri) for uri in files]).sort_by(SLOT)
        _write(folder, table)
        storage.delete_files(files)


def _write(folder: str, table: pa.Table) -> None:
    """A new file of hashes, which is found by its digest where a list lacks it."""
    name = f"part-{uuid.uuid4().hex}.parquet"
    storage.write_table(storage.join(folder, name), table)
    note_digests(folder, {name: digest_of(storage.join(folder, name))})


def _files(folder: str) -> list[str]:
    """The files of hashes: those that are listed, and those with a digest, which the list of a store may still lack."""
    names = {storage.name(file.uri) for file in storage.list_files(folder)}
    noted = storage.join(folder, NOTED_FILE)
    if storage.is_s3(folder) and storage.exists(noted):
        names.update(not_listed(folder, read_listing(noted).keys() - names))
    return sorted(storage.join(folder, name) for name in names if name.endswith(".parquet"))


def _key(folder: str) -> bytes:
    uri = storage.join(folder, "key.json")
    if not storage.exists(uri):
        raise InputError(f"{uri} is lost, without it the hashes beside it say nothing: restore it from a backup")
    with storage.reading(uri):
        return bytes.fromhex(storage.read_json(uri)["key"])


def _slots(ids: pa.Array, key: bytes) -> np.ndarray:
    """Keyed 32-bit hashes of ids, uint32: they rule out nearly every id that is not on the list."""
    shift, factor = (int.from_bytes(key[place : place + 8], "little") for place in (0, 8))
    mixed = (user_hash(ids).view(np.uint64) ^ np.uint64(shift)) * np.uint64(factor | 1)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def _digest(user: int | str, key: bytes) -> bytes:
    return hashlib.blake2b(str(user).encode(), key=key, digest_size=DIGEST_BYTES).digest()
