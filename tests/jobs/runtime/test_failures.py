"""What is broken, full or out of reach is one line with a remedy, without the secrets around it."""

import datetime as dt
import errno
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from jobs.config import load_config
from jobs.day import Day, day_lease, open_day
from jobs.runtime import failures
from pipelines import delta_tables, digests, object_store, storage
from pipelines.errors import InputError
from pipelines.histories.shards import read_manifest
from pipelines.leases import lease_holder
from pipelines.redact import RedactingStream, redact
from pipelines.schema import METRICS_TABLE
from pipelines.workspace import open_workspace
from tests.log_lines import said
from tests.small_logs import write_logs

PLANTED = "planted-secret-7"


def refusal(*arguments: str, **environment: str) -> str:
    """The one line on standard error of a command that must refuse."""
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    started = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False, timeout=120
    )
    lines = said(done.stderr)
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert PLANTED not in done.stdout + done.stderr
    assert time.monotonic() - started < 60
    return lines[0]


def test_a_registry_that_is_gone_is_named_without_its_password(tmp_path: Path) -> None:
    line = refusal(
        *("promote", "--ds", "2026-03-02", "--workspace", str(tmp_path)),
        *("--set", f"mlflow.tracking_uri=http://ann:{PLANTED}@127.0.0.1:9"),
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
    )
    assert "MLflow at 127.0.0.1:9 does not answer: see whether it runs and mlflow.tracking_uri is right" in line
    assert PLANTED not in "".join(file.read_text() for file in tmp_path.rglob("*.json"))


def test_a_store_that_is_gone_and_a_configuration_that_cannot_be_fetched_are_named(s3: str, tmp_path: Path) -> None:
    day = ("daily", "--ds", "2026-03-02")
    gone = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_SECRET_ACCESS_KEY": PLANTED}
    assert "http://127.0.0.1:9 does not answer" in refusal(*day, "--workspace", f"{s3}/music", **gone)
    for file, reason in (
        (f"{s3}/daily.yaml", "is not there: correct --config"),
        ("s3://nowhere/daily.yaml", "there is no bucket s3://nowhere: create it"),
        (str(tmp_path), "cannot be read"),
    ):
        with pytest.raises(InputError, match=f"configuration file {file}:? {reason}"):
            load_config(file)
    storage.write_bytes(f"{s3}/daily.yaml", b"train: {epochs: 3}")
    assert load_config(f"{s3}/daily.yaml", environment={}).train.epochs == 3


def test_a_disk_that_fills_up_and_one_that_is_read_only_are_named() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/music/runs/x.json.tmp")
    assert failures.explain(full) == (
        "/data/music/runs/x.json.tmp: the disk is full: make room and run again; what was published is unchanged"
    )
    java = RuntimeError("Job aborted: java.io.IOException: No space left on device")
    nested = RuntimeError("a task failed")
    nested.__cause__ = java
    assert "the disk is full" in (failures.explain(nested) or "")
    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS), "/data/x")
    assert (failures.explain(read_only) or "").startswith("/data/x cannot be written (Read-only file system)")
    with open("/dev/full", "w") as full_device:
        full_device.write("x" * 10)
        with pytest.raises(OSError, match="No space") as raised:
            full_device.flush()
        assert "the disk is full" in (failures.explain(raised.value) or "")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full_device.fileno())
    assert failures.explain(ValueError("operands could not be broadcast")) is None


def test_errors_of_every_library_that_talks_to_the_store_are_explained(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "ATTEMPTS", 1)
    there = os.environ["AWS_ENDPOINT_URL"]
    for endpoint, uri, expected in (
        ("http://127.0.0.1:9", f"{s3}/w", "does not answer"),
        (there, "s3://nowhere/w", "no such bucket|no bucket"),
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        fs, path = storage.filesystem(uri)
        calls: tuple[Callable[[], object], ...] = (
            partial(fs.get_file_info, path if endpoint != there else pafs.FileSelector(path)),
            partial(storage.read_bytes, f"{uri}/x"),
            partial(storage.write_bytes, f"{uri}/x", b""),
            partial(delta_tables.overwrite, uri, METRICS_TABLE, [], {"ds": "2026-03-02"}),
        )
        for call in calls:
            with pytest.raises((OSError, ValueError)) as raised:
                call()
            line = failures.explain(raised.value)
            assert line and re.search(expected, line), (call, raised.value)


READERS: dict[str, Callable[[Day], object]] = {
    "run_record.json": lambda day: day.record,
    "train.json": lambda day: day.result("train"),
    "evaluate.failure.json": lambda day: day.failure("evaluate"),
    "_manifest.json": lambda day: read_manifest(day.path("")),
    "digests.json": lambda day: digests.read_listing(day.path("digests.json")),
    "_workspace.json": lambda day: open_workspace(day.path("")),
}
OTHERS = {("evaluate.failure.json", b'{"run_id": 1}'), ("train.json", b'{"run_id": 1}'), ("digests.json", b"{}")}
"""Of another run record, and of no file: nothing is wrong with them."""


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content", [b"", b'{"stage": "tr', b"[]", b"null", b'"x"', b"7", b"{}", b'{"run_id": 1}', b"\xff"]
)
def test_a_state_file_that_holds_something_else_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    day = open_day(load_config(overrides=[f"workspace={tmp_path}"], environment={}), dt.date(2026, 3, 2))
    day.new_record()
    Path(day.path(name)).write_bytes(content)
    if (name, content) in OTHERS:
        READERS[name](day)
        return
    with pytest.raises(InputError, match=rf"{name}.*: \S") as raised:
        READERS[name](day)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b'{"stage": "tr', b"[]", b"null", b"7"])
def test_what_a_local_lock_file_says_does_not_count(tmp_path: Path, content: bytes) -> None:
    day = open_day(load_config(overrides=[f"workspace={tmp_path}"], environment={}), dt.date(2026, 3, 2))
    day.new_record()
    Path(day.path("daily.lock")).write_bytes(content)
    with day_lease(day, "daily"):
        assert lease_holder(day.path("daily.lock"))


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://fuxi:{PLANTED}@db/mlflow is locked",
        f"GET https://b.s3.amazonaws.com/x?X-Amz-Signature={PLANTED}&X-Amz-Date=1",
        f"Authorization: Bearer {PLANTED}",
        f"{{'aws_secret_access_key': '{PLANTED}'}}",
        f"spark.hadoop.fs.s3a.secret.key={PLANTED}",
        f"FUXI_PASSWORD: {PLANTED}",
    ],
)
def test_secrets_are_redacted_by_their_form(text: str) -> None:
    assert PLANTED not in redact(text) and "***" in redact(text)


def test_secrets_are_redacted_by_their_value(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of-the-environment")
    load_config(overrides=["mlflow.tracking_uri=http://ann:of-the-url@mlflow"], environment={})
    stream = RedactingStream(sys.stderr)
    try:
        raise RuntimeError("of-the-environment, of-the-url")
    except RuntimeError:
        traceback.print_exc(file=stream)  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert "RuntimeError: ***, ***" in said


def test_what_is_no_secret_stays() -> None:
    for text in (
        "s3://bucket/logs/ds=2026-03-02/part-1.parquet",
        "http://127.0.0.1:5000/#/experiments/1",
        '{"run_key": "2026-03-02-abc", "tokens": 4096, "keys": 3}',
        "batch_tokens: 32768, 5,000,000 tokens/s; user ann@example.org",
    ):
        assert redact(text) == text
    assert isinstance(storage.filesystem("/tmp")[0], pafs.LocalFileSystem)


SMALL_DISK = """
mount -t tmpfs -o size={size} tmpfs {folder} || exit 77
cd {root}
exec "$0" -c "$1"
"""
WRITE = """
import pyarrow as pa
from jobs.runtime import failures
from pipelines import storage
try:
    storage.write_table("{folder}/shards/part.parquet", pa.table({{"x": range(1_000_000)}}))
except OSError as error:
    error.add_note("ds 2026-03-02 needs 9.0 GB")
    print(failures.explain(error))
"""
SESSIONIZE = """
import pathlib, psutil, subprocess, sys, time
command = [sys.executable, "-m", "jobs.cli", "sessionize", "--ds", "2026-03-03", "--workspace", "{folder}/w"]
command += ["--set", "logs.path={logs}", "--set", "sequences.buckets=2", "--set", "cluster.spark_master=local[2]"]
process = psutil.Popen(command, stderr=subprocess.PIPE, text=True)
while not [child for child in process.children(recursive=True) if child.name() == "java"]:
    assert process.poll() is None
    time.sleep(0.1)
with open("{folder}/fill", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(1 << 12))
    except OSError:
        pass
print(process.communicate()[1], process.returncode)
"""


def on_a_small_disk(tmp_path: Path, size: str, code: str, **names: object) -> str:
    """What a program prints for which a folder is a file system of its own, of some size."""
    folder = tmp_path / "small"
    folder.mkdir()
    script = SMALL_DISK.format(size=size, folder=folder, root=Path(__file__).parents[3])
    command = ["unshare", "-rm", "bash", "-c", script, sys.executable, code.format(folder=folder, **names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount a file system")
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(str(folder), "DISK")


def test_a_file_system_that_fills_up_below_arrow_is_named_with_what_the_day_needs(tmp_path: Path) -> None:
    line = on_a_small_disk(tmp_path, "1m", WRITE)
    assert re.match(
        r"DISK/shards/part\.parquet\S*: the disk is full \(1\.0 MB free in DISK/shards\); ds 2026-03-02 needs 9\.0 GB: "
        "make room and run again; what was published is unchanged",
        line,
    ), line


@pytest.mark.slow
def test_a_file_system_that_fills_up_below_spark_is_one_line(tmp_path: Path) -> None:
    written = on_a_small_disk(tmp_path, "30m", SESSIONIZE, logs=write_logs(tmp_path / "logs", 20_000))
    written, _, code = written.rstrip().rpartition("\n")
    lines = said(written.strip())
    assert int(code) == 2 and len(lines) == 1, written
    assert "the disk is full" in lines[0] and "; ds 2026-03-03 needs " in lines[0]
