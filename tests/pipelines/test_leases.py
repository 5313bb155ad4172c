"""Leases, on the local disk and on a real S3 server."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import leases, storage
from pipelines.errors import BusyError


def test_a_local_lease_is_exclusive_and_names_its_holder(tmp_path: Path) -> None:
    uri = str(tmp_path / "day.lock")
    with (
        leases.lease(uri, purpose="first run"),
        pytest.raises(BusyError, match="first run, process"),
        leases.lease(uri, purpose="second run"),
    ):
        pass
    with leases.lease(uri, purpose="third run"):
        pass


def test_a_local_lease_dies_with_its_process(tmp_path: Path) -> None:
    uri = str(tmp_path / "day.lock")
    code = (
        "import time\nfrom pipelines import leases\n"
        f"with leases.lease({uri!r}, purpose='other'):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    with pytest.raises(BusyError), leases.lease(uri, purpose="mine"):
        pass
    process.kill()
    process.wait()
    with leases.lease(uri, purpose="mine"):
        pass


def test_an_s3_lease_is_exclusive_renewed_and_taken_over_when_abandoned(s3: str) -> None:
    uri = f"{s3}/runs/day.lock"
    with leases.lease(uri, purpose="first run", seconds=0.9):
        time.sleep(1.5)  # past the first expiry: only renewal keeps it
        with pytest.raises(BusyError, match="first run"), leases.lease(uri, purpose="second run"):
            pass
    abandoned = b'{"holder": "dead", "expires": 1.0}'
    storage.write_bytes(uri, abandoned)
    with leases.lease(uri, purpose="third run"):
        pass
    assert not storage.exists(uri)
