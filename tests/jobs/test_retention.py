"""What `fuxi retain` deletes and what it never does: whatever a kept day names."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.commands import retain as command
from jobs.day import lease_uri
from jobs.registry import versions
from jobs.retention import Removed
from pipelines import leases, storage
from pipelines.errors import BusyError, InputError
from pipelines.histories.shards import ShardFile, listed_uris, read_manifest

from .conftest import Deployment

DAYS = [dt.date(2026, 3, 1) + dt.timedelta(days=n) for n in range(12)]


def bounded(house: Deployment, **bounds: int) -> Deployment:
    everything = {"scratch_days": 0, **bounds}
    house.config = house.config.model_copy(update={"retain": house.config.retain.model_copy(update=everything)})
    return house


def by_kind(removed: list[Removed]) -> dict[str, tuple[dt.date, ...]]:
    return {kind.kind: kind.days for kind in removed}


def files_below(house: Deployment) -> dict[str, int]:
    root = Path(house.config.workspace)
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}


def build(house: Deployment, days: list[dt.date]) -> None:
    """Days of which each has shards, and reads the buckets 0 and 1 of the day before in place."""
    parent = None
    for ds in days:
        day = house.day(ds)
        day.new_record(parent_sequences=parent and str(parent), vocabulary_version=0)
        manifest = house.sessionized(ds)
        if parent:
            _carry(house, parent, ds, manifest.files)
        parent = ds


def _carry(house: Deployment, parent: dt.date, ds: dt.date, files: tuple[ShardFile, ...]) -> None:
    before = read_manifest(house.day(ds).workspace.sequences(parent))
    uri = storage.join(house.day(ds).workspace.sequences(ds), "_manifest.json")
    carried = [before.carried(file) for file in before.files if file.bucket < 2]
    content: dict[str, Any] = storage.read_json(uri)
    stored = {entry["bucket"]: entry for entry in content["files"]}
    for file in carried:
        stored[file.bucket] |= {"path": file.path, "home": file.home, "sha256": file.sha256, "bytes": file.bytes}
    storage.write_json(uri, {**content, "files": [stored[file.bucket] for file in files]})


def test_kept_days_read_all_their_shards_and_what_they_are_built_on(deployment: Callable[..., Deployment]) -> None:
    house = deployment()
    build(house, DAYS[:5])
    workspace = house.day(DAYS[4]).workspace
    before = files_below(house)
    planned = command.run(bounded(house, sequences_days=2).config, dry_run=True)
    assert files_below(house) == before

    removed = command.run(house.config)

    assert by_kind(removed) == by_kind(planned) == {"sequences": tuple(DAYS[:2])}
    kept = DAYS[2:5]  # two days, and the day that the older of them is built on
    assert workspace.days_with_sequences() == kept
    for ds in kept:
        manifest = read_manifest(workspace.sequences(ds))
        assert all(map(storage.exists, listed_uris(manifest)))
        assert sum(len(manifest.histories(file)) for file in manifest.files) == manifest.rows
    gone = before.keys() - files_below(house).keys()
    carried = {
        name for name in before if f"ds={DAYS[0]}" in name and ("bucket=00000" in name or "bucket=00001" in name)
    }
    assert gone and carried and not carried & gone
    assert by_kind(command.run(house.config)) == {"sequences": ()}


def test_a_killed_retention_is_finished_by_the_next(
    deployment: Callable[..., Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = bounded(deployment(), sequences_days=1)
    build(house, DAYS[:4])
    with monkeypatch.context() as patched:
        patched.setattr(storage, "delete_files", _dies_after(2))
        with pytest.raises(RuntimeError, match="killed"):
            command.run(house.config)
    for ds in house.day(DAYS[3]).workspace.days_with_sequences():
        assert all(map(storage.exists, listed_uris(read_manifest(house.day(ds).workspace.sequences(ds)))))
    command.run(house.config)
    assert by_kind(command.run(house.config)) == {"sequences": ()}


def _dies_after(files: int) -> Callable[..., None]:
    left, delete = [files], storage.delete_files

    def dying(uris: Any) -> None:
        for uri in uris:
            if not left[0]:
                raise RuntimeError("killed")
            left[0] -= 1
            delete([uri])

    return dying


def test_models_that_serve_start_or_are_named_stay(deployment: Callable[..., Deployment]) -> None:
    house = bounded(deployment(), models_days=3)
    made = {}
    for ds in DAYS[:6]:
        made[ds] = house.trained(ds)
        house.day(ds).update_record(chosen_model=made[DAYS[0]] if ds == DAYS[5] else made[ds])
    for ds in DAYS[1:3]:
        Path(house.day(ds).record_uri).unlink()
    versions.promote(house.day(DAYS[0]), made[DAYS[0]])
    folder = Path(versions.download_model(house.day(DAYS[5]), made[DAYS[1]]))
    removed = command.run(house.config)
    left = {info.version for info in versions.versions(house.day(DAYS[5]))}
    assert left == {made[ds] for ds in (DAYS[0], *DAYS[3:6])}
    assert (
        not folder.exists() and removed[0].bytes > 0 and removed[0].note == f"versions {made[DAYS[1]]}, {made[DAYS[2]]}"
    )
    assert versions.champion(house.day(DAYS[6])) is None or made[DAYS[0]] in left
    assert Path(versions.download_model(house.day(DAYS[5]), made[DAYS[0]])).exists()


def test_the_last_full_retrain_stays_however_old_and_so_does_what_a_day_was_measured_beside(
    deployment: Callable[..., Deployment],
) -> None:
    house = bounded(deployment(), models_days=1)
    for number, ds in enumerate(DAYS[:5]):
        version = house.trained(ds, parent=None if number in (0, 1, 3) else "2")
        house.day(ds).update_record(chosen_model="5")
        if number in (1, 2, 4):  # 2 is the last full retrain that was promoted, 1 and 4 were not, 5 serves
            versions.promote(house.day(ds), version)
    house.day(DAYS[4]).finish("evaluate", {"versions": {"challenger": "5", "champion": "3"}}, 0.0)
    command.run(house.config)
    assert {info.version for info in versions.versions(house.day(DAYS[4]))} == {"2", "3", "5"}


def test_scratch_of_a_training_goes_once_the_model_is_registered(deployment: Callable[..., Deployment]) -> None:
    house = bounded(deployment(), scratch_days=1)
    for ds in DAYS[:3]:
        house.trained(ds)
        storage.write_bytes(storage.join(house.day(ds).path("checkpoints"), "run", "weights.pt"), b"12345")
    house.day(DAYS[1]).withdraw("train")
    removed = command.run(house.config)
    assert removed[0].days == (DAYS[0],)
    assert [name for name in files_below(house) if name.endswith("weights.pt")] == [
        f"runs/ds={ds}/checkpoints/run/weights.pt" for ds in DAYS[1:3]
    ]
    assert storage.exists(house.day(DAYS[0]).path("train.json"))


def test_lists_pages_rejected_rows_and_runs(deployment: Callable[..., Deployment]) -> None:
    house = bounded(deployment("gates.best_of_days=5"), lists_days=8, quarantine_days=2, reports_days=3, runs_days=6)
    for ds in (DAYS[0], DAYS[10]):
        house.published(ds)
    workspace = house.day(DAYS[11]).workspace
    for ds in DAYS:
        storage.write_bytes(workspace.report(ds), b"page")
        storage.write_bytes(storage.join(workspace.quarantine(ds), "part-1.parquet"), b"rows")
        storage.write_bytes(storage.join(workspace.run(ds), "promote.json"), b"{}")
    found = by_kind(command.run(house.config))
    assert found == {
        "lists": (DAYS[0],),
        "quarantine": tuple(DAYS[:10]),
        "reports": tuple(DAYS[:9]),
        "runs": tuple(DAYS[:6]),
    }
    assert workspace.days("runs") == DAYS[6:] and workspace.days("reports") == DAYS[9:]
    assert workspace.days("quarantine") == DAYS[10:]
    from jobs.tables.recommendations import published_days

    assert published_days(workspace) == [DAYS[10]]


@pytest.mark.parametrize(
    ("settings", "bounds", "says"),
    [
        ((), {"lists_days": 7}, "retain.lists_days is 7.*give 8 or more"),
        (("rules.listed_days=20",), {"lists_days": 20}, "retain.lists_days is 20.*give 21 or more"),
        ((), {"runs_days": 28}, "retain.runs_days is 28.*give 29 or more"),
    ],
)
def test_a_bound_that_cuts_what_a_later_day_reads_is_refused(
    deployment: Callable[..., Deployment], settings: tuple[str, ...], bounds: dict[str, int], says: str
) -> None:
    house = bounded(deployment(*settings), quarantine_days=1, **bounds)
    build(house, DAYS[:2])
    storage.write_bytes(storage.join(house.day(DAYS[0]).workspace.quarantine(DAYS[0]), "part-1.parquet"), b"rows")
    before = files_below(house)
    with pytest.raises(InputError, match=says):
        command.run(house.config)
    assert files_below(house) == before


def test_nothing_goes_while_a_day_runs(deployment: Callable[..., Deployment]) -> None:
    house = bounded(deployment(), sequences_days=1)
    build(house, DAYS[:3])
    held = leases.lease(lease_uri(house.day(DAYS[2]).workspace, DAYS[2]), purpose="fuxi daily")
    with held, pytest.raises(BusyError, match="fuxi daily"):
        command.run(house.config)
    assert house.day(DAYS[2]).workspace.days_with_sequences() == DAYS[:3]
