"""MLflow's database beside a workspace that was moved, copied or restored.

MLflow stores where artifacts are as absolute paths. They are rewritten when the registry is opened elsewhere.
"""

import contextlib
import sqlite3
from pathlib import Path

ARTIFACTS = "mlartifacts"
"""Folder of the artifacts, beside the database."""
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
"""Columns that hold such paths (MLflow 3)."""


def relocate(workspace: str) -> bool:
    """Let the database of a local workspace name the artifacts where the workspace is now, in one transaction.

    Returns whether it named another place before. Nothing happens where there is no database, or an empty one.
    """
    database, artifacts = Path(workspace, "mlflow.db"), f"{workspace}/{ARTIFACTS}"
    if not database.exists():
        return False
    with contextlib.closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        if not _elsewhere(connection, artifacts):
            return False
        with connection:
            connection.execute("begin immediate")
            for old in _elsewhere(connection, artifacts):  # another process may have been first
                for table, column in _LOCATIONS:
                    update = f"update {table} set {column} = ? || substr({column}, ?)"
                    below = f"where substr({column} || '/', 1, ?) = ?"
                    connection.execute(f"{update} {below}", (artifacts, len(old) + 1, len(old) + 1, f"{old}/"))
    return True


def _elsewhere(connection: sqlite3.Connection, artifacts: str) -> list[str]:
    """Folders of artifacts that experiments name and that are not this one."""
    query = (
        "select distinct artifact_location from experiments where artifact_location like ? and artifact_location != ?"
    )
    try:
        return [row[0] for row in connection.execute(query, (f"%/{ARTIFACTS}", artifacts))]
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):  # MLflow has not made its tables yet
            return []
        raise
