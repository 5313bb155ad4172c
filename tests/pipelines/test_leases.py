"""Leases, on the local disk and on a real S3 server: with other processes, killed and frozen ones among them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from benchmarks.lib.fault_proxy import FaultProxy, Faults
from pipelines import leases, storage
from pipelines.errors import BusyError, FencedError

HOLDER = """
import sys, time
from pipelines import leases
uri, marker, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
try:
    with leases.lease(uri, purpose="first run", seconds=seconds):
        print("held", flush=True)
        for line in sys.stdin:
            leases.publish_json(marker, {"by": "first run"})
            print("published", flush=True)
except leases.FencedError as error:
    print(f"refused: {error}", flush=True)
"""


@contextmanager
def holder(uri: str, marker: str = "", seconds: float = 60) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lease; each line it is sent lets it publish the marker."""
    command = [sys.executable, "-c", HOLDER, uri, marker, str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert said(process.stdout) == "held"
            yield process
        finally:
            process.kill()


def said(stream: IO[str] | None) -> str:
    assert stream
    return stream.readline().strip()


@pytest.fixture(autouse=True)
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interruptions here must not end the Spark session that other tests share."""
    monkeypatch.setattr(leases, "_at_stop", [])


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run folder on the disk, and one on S3."""
    root = str(tmp_path) if request.param == "disk" else request.getfixturevalue("s3")
    return storage.join(root, "runs", "ds=2026-03-02")


def take(uri: str) -> None:
    with leases.lease(uri, purpose="another"):
        pass


def test_a_lease_is_exclusive_and_names_its_holder(place: str) -> None:
    uri = storage.join(place, "daily.lock")
    assert not leases.lease_holder(uri)
    with leases.lease(uri, purpose="first run") as first:
        assert leases.lease_holder(uri).startswith(f"first run, process {os.getpid()} on ")
        with pytest.raises(BusyError, match="first run, process"):
            take(uri)
    assert not leases.lease_holder(uri)
    with leases.lease(uri, purpose="third run") as third:
        assert third.token > first.token


def test_a_lease_of_a_killed_process_of_this_host_is_free_at_once(place: str) -> None:
    uri = storage.join(place, "daily.lock")
    with holder(uri) as process:
        with pytest.raises(BusyError):
            take(uri)
        process.kill()
        process.wait()
        assert not leases.lease_holder(uri)
        take(uri)


BROKEN = (b"", b'{"holder": "fuxi da', b"[1]", b'{"holder": "an older release", "expires": 1}')


def test_a_broken_lock_file_is_somebody_s_until_it_is_too_old(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = storage.join(place, "daily.lock")
    for content in BROKEN:
        storage.write_bytes(uri, content)
        if storage.is_s3(uri):
            with pytest.raises(BusyError, match="held by another run"):
                take(uri)
        with monkeypatch.context() as patch:
            patch.setattr(leases, "SECONDS", -5.0)
            take(uri)


def test_a_lease_is_waited_for(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_S3_POLL_S", 0.2)
    uri, waited = storage.join(place, "daily.lock"), []
    with holder(uri) as process:

        def end(who: str) -> None:
            waited.append(who)
            process.kill()
            process.wait()

        with leases.lease(uri, purpose="second run", wait=end):
            pass
    assert len(waited) == 1 and waited[0].startswith("first run, process")


def test_a_frozen_holder_publishes_nothing_after_another_took_over(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_S3_POLL_S", 0.2)
    folder = storage.join(s3, "runs", "ds=2026-03-02")
    uri, marker = storage.join(folder, "daily.lock"), storage.join(folder, "train.json")
    with holder(uri, marker, seconds=8) as process:
        assert process.stdin
        print("go", file=process.stdin, flush=True)
        assert said(process.stdout) == "published"
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(BusyError):
            take(uri)
        with leases.lease(uri, purpose="second run", seconds=60, wait=lambda _: None):
            leases.publish_json(marker, {"by": "second run"})
        print("go", file=process.stdin, flush=True)
        process.send_signal(signal.SIGCONT)
        assert said(process.stdout).startswith("refused: ")
    assert storage.read_json(marker) == {"by": "second run"}
    assert not leases.lease_holder(uri)  # neither ended nor taken back by the first


def test_a_frozen_holder_keeps_a_lease_on_the_disk(tmp_path: Path) -> None:
    uri, marker = str(tmp_path / "daily.lock"), str(tmp_path / "train.json")
    with holder(uri, marker, seconds=0.1) as process:
        assert process.stdin
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        with pytest.raises(BusyError, match="first run"):
            take(uri)
        process.send_signal(signal.SIGCONT)
        print("go", file=process.stdin, flush=True)
        assert said(process.stdout) == "published"


def test_what_a_late_holder_writes_is_refused_by_the_object_s_token(s3: str) -> None:
    """The write of a holder that was stopped between its look at the lease and its write."""
    uri = f"{s3}/runs/ds=2026-03-02/train.json"
    storage.write_json(uri, {"by": "first"}, fence=7)
    storage.write_json(uri, {"by": "second"}, fence=9)
    with pytest.raises(FencedError, match="has taken over"):
        storage.write_json(uri, {"by": "first"}, fence=7)
    assert storage.read_json(uri) == {"by": "second"}


@contextmanager
def proxied(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.mark.parametrize("answer", ["outage", "errors"])
def test_renewal_survives_an_outage_shorter_than_the_lease(
    s3: str, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """Whether connections are reset or every request is answered by 503."""
    uri = f"{s3}/runs/ds=2026-03-02/daily.lock"
    with proxied(monkeypatch) as proxy, leases.lease(uri, purpose="first run", seconds=9) as held:
        began = time.monotonic()
        if answer == "outage":
            proxy.outage(9)
        else:
            proxy.faults = Faults(errors=1.0)
        while proxy.counts[answer] < 2 and time.monotonic() < began + 8:  # a renewal failed, and so did its repetition
            time.sleep(0.05)
        proxy.outage(0)
        proxy.faults = Faults()
        time.sleep(max(0.0, began + 9.5 - time.monotonic()))  # longer than the lease lasts without another renewal
        held.ensure()
        assert proxy.counts[answer] > 1
    assert storage.read_json(uri)["released"]


@pytest.mark.parametrize("answer", ["outage", "silence"])
def test_work_ends_before_a_lease_runs_out_that_cannot_be_renewed(
    s3: str, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """Whether the renewal is refused or waits for an answer that does not come."""
    uri, ended = f"{s3}/runs/ds=2026-03-02/daily.lock", []
    with proxied(monkeypatch) as proxy:
        with (
            pytest.raises(FencedError, match="could not be renewed"),
            leases.lease(uri, purpose="run", seconds=8),
        ):
            started = time.monotonic()
            leases.at_stop(lambda: ended.append(time.monotonic() - started))
            proxy.outage(60, silent=answer == "silence")
            time.sleep(60)
        assert ended and ended[0] < 8
        proxy.outage(0)
        storage.write_json(uri, {**storage.read_json(uri), "pid": os.getppid(), "hold": "another's"})
    assert not storage.read_json(uri)["released"]


def test_a_stop_waits_for_the_commit_that_is_being_made(tmp_path: Path) -> None:
    uri, made = str(tmp_path / "daily.lock"), []

    def stop(*_: object) -> None:
        leases.interrupt(KeyboardInterrupt())

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KeyboardInterrupt), leases.lease(uri, purpose="run"):
            with leases.publishing():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                made.append("commit")
            made.append("more")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert made == ["commit"] and not leases.lease_holder(uri)


def rewritten(uri: str, write: Callable[[int], None], seconds: float = 1.5) -> int:
    """Reads of a file while it is written again and again; each must be one of its versions."""
    storage.write_json(uri, {"n": 0, "fill": ["x"]})
    ended, counted = threading.Event(), [0, 0, 0]

    def read(reader: int) -> None:
        while not ended.is_set():
            content = storage.read_json(uri)
            assert content["fill"] == ["x"] * max(content["n"] % 7 * 1000, 1), content["n"]
            counted[reader] += 1

    threads = [threading.Thread(target=read, args=[reader]) for reader in range(len(counted))]
    errors: list[object] = []
    before, threading.excepthook = threading.excepthook, lambda failed: errors.append(failed.exc_value)
    try:
        for thread in threads:
            thread.start()
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            write(number)
            number += 1
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        threading.excepthook = before
    assert not errors
    return sum(counted)


def test_no_read_is_torn_while_a_file_is_replaced(place: str) -> None:
    uri = storage.join(place, "train.json")

    def write(number: int) -> None:
        leases.publish_json(uri, {"n": number, "fill": ["x"] * max(number % 7 * 1000, 1)})

    with leases.lease(storage.join(place, "daily.lock"), purpose="run"):
        assert rewritten(uri, write) > 20
    assert json.loads(storage.read_bytes(uri))["n"] > 5
