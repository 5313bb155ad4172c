"""A workspace remembers how it was made and refuses to be opened differently."""

import datetime as dt
import json
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.errors import InputError
from pipelines.workspace import WorkspaceSpec, open_workspace

SPEC = WorkspaceSpec(buckets=8)


def test_a_workspace_is_created_once_and_opened_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "w")
    assert open_workspace(uri, SPEC).spec == SPEC
    assert open_workspace(uri).spec == SPEC
    assert open_workspace(uri, SPEC).spec == SPEC


def test_a_workspace_lives_on_s3(s3: str) -> None:
    open_workspace(f"{s3}/w", SPEC)
    assert open_workspace(f"{s3}/w").spec == SPEC


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "w")
    open_workspace(uri, SPEC)
    marker = Path(uri) / "_workspace.json"
    marker.write_text(json.dumps({**storage.read_json(str(marker)), "schema_version": 99}))
    with pytest.raises(InputError, match="schema_version is 99, this release reads 1"):
        open_workspace(uri, SPEC)


@pytest.mark.parametrize("changed", [{"buckets": 16}, {"timezone": "Europe/Berlin"}, {"user_id_type": "string"}])
@pytest.mark.parametrize("built", ["vocabulary", "sequences/ds=2026-03-02/_manifest.json", "forgotten"])
def test_what_things_are_built_with_can_change_until_then(tmp_path: Path, changed: dict, built: str) -> None:
    open_workspace(str(tmp_path), SPEC)
    (tmp_path / "quarantine" / "ds=2026-03-02").mkdir(parents=True)  # of a day that was refused
    other = WorkspaceSpec(**{"buckets": 8, **changed})
    assert open_workspace(str(tmp_path), other, create=False).spec == other
    assert open_workspace(str(tmp_path)).spec == SPEC
    open_workspace(str(tmp_path), other)
    assert open_workspace(str(tmp_path)).spec == other
    storage.write_bytes(storage.join(str(tmp_path), built, *["x"] * ("." not in built)), b"{}")
    with pytest.raises(InputError, match=f"{next(iter(changed))} .*cannot change any more"):
        open_workspace(str(tmp_path), SPEC)


def test_a_folder_that_is_no_workspace_is_refused_when_nothing_may_be_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a workspace"):
        open_workspace(str(tmp_path))


@pytest.mark.parametrize("buckets", [0, 3, 12])
def test_buckets_must_be_a_power_of_two(buckets: int) -> None:
    with pytest.raises(InputError, match="power of two"):
        WorkspaceSpec(buckets=buckets)


def test_only_days_with_a_manifest_count_as_published(tmp_path: Path) -> None:
    workspace = open_workspace(str(tmp_path), SPEC)
    for day in (3, 1, 2):
        storage.write_bytes(storage.join(workspace.sequences(dt.date(2026, 3, day)), "bucket=00000", "x"), b"")
    for day in (3, 1):
        storage.write_json(storage.join(workspace.sequences(dt.date(2026, 3, day)), "_manifest.json"), {})
    assert workspace.days_with_sequences() == [dt.date(2026, 3, 1), dt.date(2026, 3, 3)]
