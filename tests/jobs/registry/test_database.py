"""MLflow's database: whole or not there, whatever was killed while it was made."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.registry.database import ensure_database
from pipelines.errors import InputError

MAKE = """
import os, signal, sys
from pathlib import Path
from alembic.operations import Operations
from jobs.registry.database import ensure_database

create, left = Operations.create_table, int(sys.argv[2])

def dying(self, *arguments, **options):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return create(self, *arguments, **options)

Operations.create_table = dying
ensure_database(Path(sys.argv[1]), f"sqlite:///{sys.argv[1]}")
"""


def made(database: Path) -> None:
    ensure_database.cache_clear()
    ensure_database(database, f"sqlite:///{database}")


def tables(database: Path) -> set[str]:
    with sqlite3.connect(database) as connection:
        return {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("whole") / "mlflow.db"
    made(database)
    assert {"runs", "model_versions", "alembic_version"} <= tables(database)
    return database


@pytest.mark.parametrize("table", [1, 7])
def test_a_kill_while_it_is_made_leaves_none_and_the_next_run_makes_it(tmp_path: Path, whole: Path, table: int) -> None:
    database = tmp_path / "mlflow.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", MAKE, str(database), str(table)], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL and not database.exists()
    made(database)
    assert tables(database) == tables(whole) and [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("damage", ["an empty file", "no revision", "an early revision"])
def test_one_that_an_earlier_release_left_half_made_is_made_anew(tmp_path: Path, whole: Path, damage: str) -> None:
    database = tmp_path / "mlflow.db"
    if damage == "an empty file":
        database.touch()
    else:
        shutil.copy(whole, database)
        with sqlite3.connect(database) as connection:
            changed = (
                "delete from alembic_version" if "no" in damage else "update alembic_version set version_num = '1'"
            )
            connection.execute(changed)
            connection.execute("drop table model_versions")
    made(database)
    assert tables(database) == tables(whole)


def test_one_with_models_of_another_mlflow_is_kept_and_refused_in_one_line(tmp_path: Path, whole: Path) -> None:
    database = tmp_path / "mlflow.db"
    shutil.copy(whole, database)
    with sqlite3.connect(database) as connection:
        connection.execute("update alembic_version set version_num = 'older'")
        connection.execute("insert into registered_models (name) values ('fuxi')")
    before = database.read_bytes()
    with pytest.raises(
        InputError, match=r"mlflow\.db has 1 registered models and .* `mlflow db upgrade 'sqlite:///"
    ) as error:
        made(database)
    assert "\n" not in str(error.value) and database.read_bytes() == before


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(InputError, match=r"mlflow\.db is damaged .*restore it"):
        made(tmp_path / "mlflow.db")


@pytest.mark.parametrize("content", [None, b""])
def test_models_without_their_database_are_no_new_registry(tmp_path: Path, content: bytes | None) -> None:
    """In an empty one, the next day would be trained from nothing and compared with no champion."""
    database = tmp_path / "mlflow.db"
    model = tmp_path / "mlartifacts" / "models" / "m-1" / "artifacts" / "MLmodel"
    model.parent.mkdir(parents=True)
    model.write_text("flavors: {}")
    if content is not None:
        database.write_bytes(content)
    with pytest.raises(InputError, match=r"mlflow\.db is empty or not there, but .*mlartifacts has models: restore it"):
        ensure_database(database, f"sqlite:///{database}")
