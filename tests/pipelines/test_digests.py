"""Digests of files: every flipped bit is found, by the name of its file."""

import json
import random
from pathlib import Path

import pytest

from pipelines import digests, storage
from pipelines.errors import InputError


def test_every_flipped_bit_of_a_json_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    content = {"a": [1, 2.5e-7, None], "é": {"b": "c", "day": "2026-03-02"}}
    storage.write_json(str(file), content)
    whole = file.read_bytes()
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            assert storage.read_json(str(file)) == content
        except InputError as error:
            assert str(file) in str(error) and "restore it or remove it" in str(error)


def test_json_of_an_earlier_release_or_edited_by_hand_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    storage.write_json(str(file), {"a": 1})
    edited = json.loads(file.read_text()) | {"a": 2}
    file.write_text(json.dumps(edited))
    with pytest.raises(InputError, match="after an edit by hand remove its line _sha256"):
        storage.read_json(str(file))
    file.write_text(json.dumps({"a": 2}))
    assert storage.read_json(str(file)) == {"a": 2}
    file.write_text(json.dumps({"key": "0123456789abcdef" * 4}))  # forgotten/key.json of an earlier release
    assert storage.read_json(str(file))["key"].startswith("0123")
    storage.write_json(str(file), {})
    assert storage.read_json(str(file)) == {}


def test_a_damaged_a_shortened_and_a_missing_file_of_a_folder_are_named(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for name in ("a", ".hidden", "below/b"):
        storage.write_bytes(f"{folder}/{name}", name.encode() * 9)
    digests.check_folder(folder, remedy="none is needed")  # of an earlier release
    digests.write_digests(folder)
    digests.check_folder(folder, remedy="none is needed")
    for name, content, what in (
        ("a", b"b" * 9, "SHA-256"),
        (".hidden", b"", "has 0 bytes"),
        ("below/b", None, "not there"),
    ):
        whole = storage.read_bytes(f"{folder}/{name}")
        Path(folder, name).unlink() if content is None else storage.write_bytes(f"{folder}/{name}", content)
        with pytest.raises(InputError, match=f"{name} .*{what}.*: make it again"):
            digests.check_folder(folder, remedy="make it again")
        digests.check_folder(folder, only=["other"], remedy="not read")
        storage.write_bytes(f"{folder}/{name}", whole)


def test_noted_digests_follow_a_folder_of_files_that_are_written_once(tmp_path: Path) -> None:
    folder, rng = str(tmp_path), random.Random(1)
    storage.write_bytes(f"{folder}/old", rng.randbytes(9))
    digests.note_digests(folder)
    storage.write_bytes(f"{folder}/old", rng.randbytes(9))  # damage
    storage.write_bytes(f"{folder}/new", rng.randbytes(9))
    digests.note_digests(folder)
    with pytest.raises(InputError, match="old does not match"):
        digests.check_folder(folder, remedy="x")
    Path(folder, "old").unlink()
    digests.note_digests(folder)
    digests.check_folder(folder, remedy="x")
