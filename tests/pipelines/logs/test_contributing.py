"""CONTRIBUTING.md's way to add an input format, walked through with the file and the line it shows."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
_SECTION = (ROOT / "CONTRIBUTING.md").read_text().split("## Add an input format")[1].split("\n## ")[0]

USE = """
import datetime as dt, json, sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.feather as feather, pyarrow.parquet as pq
from jobs.config import load_config
from pipelines.errors import InputError
from pipelines.logs import files
from pipelines.logs.formats import by_ending, read_small

root, path = sys.argv[1], "ds=2026-03-02/plays"
NOON = 1_772_452_800
plays = pa.table({
    "listener": pa.array([7, 8, None, 7], pa.int32()),
    "item_id": pa.array(["a", "b", "c", ""]).dictionary_encode(),
    "timestamp": pa.array([NOON, NOON + 1, None, NOON + 3], pa.timestamp("s")),
    "play_ms": [1000.7, float("nan"), -0.5, None],
    "note": ["x", "y", "z", "w"],
})

def write(name, content):
    file = Path(root, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif file.suffix == ".parquet":
        pq.write_table(content, file)
    else:
        feather.write_feather(content, str(file), chunksize=3)
    return str(file)

def rows(name, format="auto"):
    spec = files.LogSpec(f"{root}/{name}", format, {"user_id": "listener"}, item_id_type="string")
    found = []
    for split in files.plan(spec, files.discover(spec, before=dt.date(2026, 3, 3))):
        for batch in files.read(spec, split):
            values = {column: array.to_pylist() for column, array in batch.columns.items()}
            texts = batch.as_read(np.arange(len(batch.unparseable)))
            found += [[{k: v[n] for k, v in values.items()}, json.loads(text)["note"]] for n, text in enumerate(texts)]
    return found

def refusal(name, content):
    write(f"{name}/{path}.arrow", content)
    try:
        rows(name)
    except InputError as error:
        return str(error)

arrow = write(f"arrow/{path}.arrow", plays)
write(f"parquet/{path}.parquet", plays)
write(f"named/{path}.bin", Path(arrow).read_bytes())
catalogue = write("songs.arrow", pa.table({"item_id": ["a"], "title": ["Song"], "other": [1]}))
print(json.dumps({
    "arrow": rows("arrow"),
    "parquet": rows("parquet"),
    "named": rows("named", format=load_config(overrides=["logs.format=arrow"]).logs.format),
    "missing": refusal("missing", plays.drop(["timestamp"])),
    "wrong": refusal("wrong", plays.set_column(2, "timestamp", pa.array([True] * 4))),
    "broken": refusal("broken", b"ARROW1 but no more"),
    "catalogue": read_small(catalogue, ("item_id", "title", "artist")).to_pylist(),
}))
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What comes of using the format in a copy of the package to which the file and the line were added."""
    folder = tmp_path_factory.mktemp("added")
    formats = folder / "pipelines" / "logs" / "formats"
    shutil.copytree(ROOT / "pipelines", folder / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    file, line = re.findall(r"```python\n(.*?)```", _SECTION, re.DOTALL)
    (formats / "arrow.py").write_text(file)
    registry = (formats / "__init__.py").read_text()
    changed, count = re.subn(r"^_MODULES = .*\n", line, registry, flags=re.MULTILINE)
    assert count == 1 and sum(a != b for a, b in zip(registry.split("\n"), changed.split("\n"), strict=True)) == 1
    (formats / "__init__.py").write_text(changed)
    done = subprocess.run(
        [sys.executable, "-c", USE, str(folder / "logs")],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_its_rows_are_plays_with_our_names_and_types(used: dict) -> None:
    noon = 1_772_452_800
    assert used["arrow"] == [
        [{"user_id": 7, "item_id": "a", "timestamp": noon, "play_ms": 1000}, "x"],
        [{"user_id": 8, "item_id": "b", "timestamp": noon + 1, "play_ms": None}, "y"],
        [{"user_id": None, "item_id": "c", "timestamp": None, "play_ms": -1}, "z"],
        [{"user_id": 7, "item_id": None, "timestamp": noon + 3, "play_ms": None}, "w"],
    ]
    assert used["arrow"] == used["parquet"]


def test_the_configuration_reads_files_of_any_ending_with_it(used: dict) -> None:
    assert used["named"] == used["arrow"]


def test_a_file_that_cannot_be_used_is_refused_like_one_of_another_format(used: dict) -> None:
    assert "plays.arrow: column timestamp (timestamp) is missing, found listener, item_id" in used["missing"]
    assert "plays.arrow: column timestamp (timestamp) is bool, expected times" in used["wrong"]
    assert re.search(r"plays.arrow cannot be read as arrow \(.+\): replace or remove the file", used["broken"])


def test_the_catalogue_may_be_in_it(used: dict) -> None:
    assert used["catalogue"] == [{"item_id": "a", "title": "Song"}]
