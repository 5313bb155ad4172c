"""What the machine lacks, and what may not be read or written, is one line and exit code 2."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.runtime import failures
from pipelines.errors import InputError, MachineError
from tests.log_lines import lines, said
from tests.small_logs import write_logs

DS = "2026-03-03"
_DROP_CAPABILITY, _OVERRIDES = 24, (1, 2)


def obey_permissions() -> None:
    """Of root alone: lose the capabilities that read and write everything."""
    for capability in _OVERRIDES:
        ctypes.CDLL(None).prctl(_DROP_CAPABILITY, capability, 0, 0, 0)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return write_logs(tmp_path / "logs", 200)


def refusal(logs: Path, *options: str, **environment: str) -> str:
    """The one line for people of a day that must end with 2; it is the last one."""
    command = [sys.executable, "-m", "jobs.cli", "daily", "--ds", DS, "--workspace", f"{logs.parent}/w"]
    command += ["--set", f"logs.path={logs}", "--set", "sequences.buckets=2", *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        timeout=120,
        preexec_fn=obey_permissions,
    )
    assert done.returncode == 2 and done.stdout == "", done.stderr
    [line], last = said(done.stderr), lines(done.stderr)[-1]
    assert last["exit_code"] == 2 and last["ds"] == DS and last["remedy"] and "traceback" not in last
    assert last["message"] == line.removeprefix("fuxi: ") and last["kind"] in ("refused", "unavailable")
    return line


def test_no_java(logs: Path, tmp_path: Path) -> None:
    line = refusal(logs, JAVA_HOME=f"{tmp_path}/nowhere")
    assert f"Java: none at JAVA_HOME={tmp_path}/nowhere: Spark needs Java 17 or 21: install openjdk-17" in line


def test_no_java_on_the_path_and_a_java_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pyspark.java_gateway import launch_gateway

    from jobs.runtime import java, starting

    with monkeypatch.context() as patch:
        patch.delenv("JAVA_HOME", raising=False)
        patch.setenv("PATH", str(tmp_path))
        assert java.look() == ("none on the PATH", False)
    script = tmp_path / "bin" / "java"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    script.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert java.look() == (f"11 at {script}", False)
    with pytest.raises(MachineError) as raised, starting.spark(own=True):
        launch_gateway()
    assert (failures.explain(raised.value) or "").startswith(
        f"Java: 11 at {script} does not start for Spark: Spark needs"
    )


def test_a_store_at_a_closed_port(logs: Path) -> None:
    gone = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "planted"}
    line = refusal(logs, "--workspace", "s3://music/w", "--set", "mlflow.tracking_uri=http://127.0.0.1:9", **gone)
    assert "http://127.0.0.1:9 does not answer" in line


def test_a_workspace_that_cannot_be_written(logs: Path) -> None:
    logs.parent.chmod(0o555)
    try:
        line = refusal(logs)
        assert f"{logs.parent}/w cannot be a workspace (Permission denied): correct its rights" in line
    finally:
        logs.parent.chmod(0o755)
    workspace = logs.parent / "w"
    (workspace / "runs").mkdir(parents=True)
    (workspace / "runs").chmod(0o555)
    line = refusal(logs)
    assert re.search(
        rf"{workspace}/runs/\S+ cannot be (read or )?written \(Permission denied\): correct the rights", line
    )


@pytest.mark.parametrize("place", ["/proc/nowhere/w", "/dev/null/w", "/" + "x" * 300])
def test_a_place_that_can_be_no_workspace(place: str) -> None:
    from pipelines.workspace import WorkspaceSpec, open_workspace

    with pytest.raises(InputError, match=r"cannot be a workspace \(.*\): correct its rights, or choose another place"):
        open_workspace(place, WorkspaceSpec())


def test_a_folder_for_temporary_files_that_cannot_be_written(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir(mode=0o555)
    assert f"TMPDIR is {tmp_path}/t, which cannot be written: correct it" in refusal(logs, TMPDIR=f"{tmp_path}/t")


def test_a_configuration_and_logs_that_may_not_be_read(logs: Path, tmp_path: Path) -> None:
    file = tmp_path / "daily.yaml"
    file.write_text("train: {epochs: 3}")
    file.chmod(0)
    assert f"configuration file {file} cannot be read (Permission denied)" in refusal(logs, "--config", str(file))
    for path in (*logs.rglob("*.parquet"), logs):
        path.chmod(0)
        try:
            line = refusal(logs)
        finally:
            path.chmod(0o755)
        assert re.search(rf"{logs}\S* cannot be read or written \(Permission denied\)|{logs}\S* cannot be read", line)
