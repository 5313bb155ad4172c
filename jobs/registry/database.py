"""MLflow's database beside a local workspace: made whole or not at all, and never used half-made.

MLflow makes its tables by dozens of migrations, each a commit of its own. A process killed between two of them would
leave a database that every later run fails on.
"""

import contextlib
import functools
import os
import sqlite3
import uuid
from pathlib import Path

from pipelines.errors import InputError

_RECORDS = ("registered_models", "model_versions", "runs")


@functools.cache
def ensure_database(database: Path, uri: str) -> None:
    """Make MLflow's database if there is none, or only a half-made one without a model or a run. uri: MLflow's of it.

    Raises InputError if there are models or runs in a database of another MLflow's tables. Looked at once a process.
    """
    if database.exists() and (found := _revision(database)) != (wanted := _wanted_revision()):
        if records := _records(database):
            raise InputError(
                f"{database} has {records} and tables of revision {found or 'unknown'}, this MLflow wants {wanted}: "
                f"back it up and run `mlflow db upgrade '{uri}'`, or restore it"
            )
        _refuse_beside_models(database)
        database.unlink()
    if not database.exists():
        _refuse_beside_models(database)
        _make(database, uri)


def _refuse_beside_models(database: Path) -> None:
    """InputError if models are stored beside a database that knows none: in an empty one, days would begin anew."""
    artifacts = database.with_name("mlartifacts")
    if any(artifacts.glob("models/*/artifacts/*")):
        raise InputError(
            f"{database} is empty or not there, but {artifacts} has models: restore it from a backup; to begin without "
            f"any model, move {artifacts} away"
        )


def _make(database: Path, uri: str) -> None:
    """Make it under another name, then give it its own unless another process was first."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    for left in database.parent.glob(f"{database.name}.*.tmp*"):  # by killed processes
        left.unlink(missing_ok=True)
    ending = f".{uuid.uuid4().hex}.tmp"
    made = database.with_name(f"{database.name}{ending}")
    try:
        store = SqlAlchemyStore(f"{uri}{ending}", "./mlruns")
        store.engine.dispose()
        with contextlib.suppress(FileExistsError):
            os.link(made, database)
    finally:
        made.unlink(missing_ok=True)


def _wanted_revision() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision

    return _get_latest_schema_revision()


def _revision(database: Path) -> str | None:
    """The revision of the tables, None if there is none or no database in the file."""
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection:
        try:
            row = connection.execute("select version_num from alembic_version").fetchone()
        except sqlite3.OperationalError:  # no such table
            return None
        except sqlite3.DatabaseError as error:
            raise InputError(f"{database} is damaged ({error}): restore it") from None
    return row[0] if row else None


def _records(database: Path) -> str:
    """How many models, versions and runs there are, in words; "" if there are none."""
    counts = {}
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection:
        for table in _RECORDS:
            with contextlib.suppress(sqlite3.OperationalError):
                counts[table] = connection.execute(f"select count(*) from {table}").fetchone()[0]
    return ", ".join(f"{count} {table.replace('_', ' ')}" for table, count in counts.items() if count)
