"""What a killed run of a day left below a workspace goes with the next one; what anybody else may be writing stays."""

import datetime as dt
from pathlib import Path

import pytest

from pipelines import delta_tables, leftovers, storage
from pipelines.schema import DS, METRICS_TABLE, recommendations_table
from pipelines.workspace import Workspace, WorkspaceSpec, open_workspace

DAY, NEXT = dt.date(2026, 3, 2), dt.date(2026, 3, 3)
OF_THE_DAY = (
    "runs/ds=2026-03-02/train.json.1f.tmp",
    "sequences/ds=2026-03-02/bucket=00001/part-x.parquet.1f.tmp",
    "reports/ds=2026-03-02/report.html.1f.tmp",
    "recommendations/ds=2026-03-02/part-of-nothing.parquet",
    "recommendations/ds=2026-03-02/part-x.parquet.1f.tmp",
)
SHARED = (
    "_workspace.json.1f.tmp",
    "metrics/_digests.json.1f.tmp",
    "metrics/_delta_log/_commit_1f.json.tmp",
    "metrics/part-00000-of-nothing.parquet",
)
OF_OTHERS = (
    "runs/ds=2026-03-03/train.json.1f.tmp",
    "recommendations/ds=2026-03-03/part-of-nothing.parquet",
    "logs/plays/ds=2026-03-01/part.tmp",
)


@pytest.fixture(params=["disk", "s3"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    root = f"{request.getfixturevalue('s3')}/w" if request.param == "s3" else str(tmp_path / "w")
    made = open_workspace(root, WorkspaceSpec(buckets=4))
    delta_tables.open_or_create(made.recommendations, recommendations_table("int64", "int64"))
    for value in (0.5, 0.6):  # the first version's file is in no newer one
        row = dict.fromkeys(METRICS_TABLE.schema.names) | {"ds": DAY, "protocol": "next_day", "value": value}
        delta_tables.overwrite(made.metrics, METRICS_TABLE, [row], {DS: DAY, "protocol": "next_day"})
    return made


def names(workspace: Workspace) -> set[str]:
    fs, path = storage.filesystem(workspace.uri)
    found = fs.get_file_info(leftovers.FileSelector(path, recursive=True))
    return {info.path[len(path) + 1 :] for info in found if info.is_file}


@pytest.mark.parametrize("alone", [True, False])
def test_unfinished_and_unnamed_files_go_and_nothing_else(workspace: Workspace, alone: bool) -> None:
    before = names(workspace)
    on_disk = not storage.is_s3(workspace.uri)
    left = [name for name in (*OF_THE_DAY, *SHARED, *OF_OTHERS) if on_disk or not name.endswith(".tmp")]
    for name in left:
        storage.write_bytes(storage.join(workspace.uri, name), b"half")
    leftovers.remove(workspace, DAY, alone=lambda: alone)
    gone = {*OF_THE_DAY, *(SHARED if alone else ())}
    assert names(workspace) == before | {name for name in left if name not in gone}
    assert delta_tables.open_table(workspace.metrics, 0)  # earlier versions stay readable
    assert [row["value"] for row in delta_tables.read_days(workspace.metrics)] == [0.6]


def test_nobody_else_is_looked_for_where_nothing_of_others_is_left(workspace: Workspace) -> None:
    def never() -> bool:
        raise AssertionError

    assert leftovers.remove(workspace, DAY, alone=never) == 0
