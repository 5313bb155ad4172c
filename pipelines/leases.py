"""Leases: one holder at a time for a name below a workspace, on disk or on S3; and what a holder may publish.

On a disk a lease is a lock of the kernel, which ends with its process in whatever way that ends. On S3 it is an object,
made and renewed by conditional writes. Its age is the server's: the difference of two times of one answer. Who has not
renewed it in time ends the work before anybody may take over, and the token of each holder is higher than those
before: `publishing` and `publish_json` refuse what a late holder would still write.
"""

import contextlib
import fcntl
import functools
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipelines import object_store, storage
from pipelines.errors import BusyError, FencedError
from pipelines.object_store import ConflictError, StoredObject
from pipelines.storage import absolute, is_s3, make_parent

SECONDS = 120.0
"""A lease on S3 that was not renewed for so long may be taken over."""
EXIT_LOST = 2
_CLOCK_STEP_S = 1.0  # times of S3 are whole seconds
_LOCAL_POLL_S, _S3_POLL_S = 0.5, 3.0
_LOG = logging.getLogger(__name__)

Waiting = Callable[[str], None]
"""Called with the holder, again and again, while a lease is waited for."""


@dataclass(frozen=True)
class Holder:
    """The content of a lock file. `token` grows with every holder; `released` ends the lease."""

    holder: str  # in words
    token: int
    host: str
    pid: int
    started: str  # when the process started, as the kernel counts
    hold: str  # id of this time of holding
    seconds: float
    released: bool = False


class Lease:
    """A lease that is held. `token`: the fencing token, higher than those of all holders before."""

    def __init__(self, uri: str, token: int) -> None:
        self.uri, self.token, self.lost = uri, token, False

    def ensure(self) -> None:
        """FencedError if it is not held any more."""

    def lost_error(self) -> FencedError:
        """Why the work under it ended."""
        return FencedError(
            f"{self.uri} could not be renewed in time, so that another run may hold it: nothing more is published; "
            "run again when the store answers and no other run is active"
        )


_held: list[Lease] = []
_at_stop: list[Callable[[], None]] = []
_critical = threading.local()


def lease(
    uri: str, *, purpose: str, seconds: float = SECONDS, wait: Waiting | None = None
) -> contextlib.AbstractContextManager[Lease]:
    """Hold the lock file `uri` while the block runs; BusyError if another process holds it.

    seconds: on S3, without renewal, another host may take it over after so long; on the holder's host others do as soon
    as its process is gone. wait: wait for it instead. A lease that cannot be renewed interrupts the block (SIGINT) when
    three quarters of `seconds` are over and raises FencedError; a process that has not ended the block by the end of
    the lease is ended.
    """
    return _noted(functools.partial(_s3_lease if is_s3(uri) else _local_lease, uri, purpose, seconds), uri, wait)


def lease_holder(uri: str) -> str:
    """Who holds a lock file at this moment; "" if nobody does. Neither takes the lease nor writes anything."""
    if is_s3(uri):
        try:
            current = object_store.get(uri)
        except FileNotFoundError:
            return ""
        holder = _parsed(current.content)
        return "" if _free(current, holder) else holder.holder
    try:
        with open(absolute(uri)) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _parsed(file.read().encode()).holder
    except FileNotFoundError:
        pass
    return ""


def at_stop(end: Callable[[], None]) -> None:
    """Call this once before a lease is released because of an interruption: nothing may go on working under it."""
    if end not in _at_stop:
        _at_stop.append(end)


def day_token() -> tuple[str, int] | None:
    """The ds folder ("ds=2026-03-02") whose lease on S3 this process holds, and its token; None if it holds none."""
    days = [(storage.name(storage.parent(held.uri)), held.token) for held in _held if is_s3(held.uri)]
    return next((day for day in reversed(days) if day[0].startswith("ds=")), None)


@contextlib.contextmanager
def publishing() -> Iterator[None]:
    """Around every commit. FencedError unless each lease of this process is held at this moment.

    A stop that is asked for meanwhile waits until the commit is done.
    """
    for held in tuple(_held):
        held.ensure()
    outer = getattr(_critical, "depth", 0)
    _critical.depth = outer + 1
    try:
        yield
    finally:
        _critical.depth = outer
        stop, _critical.pending = getattr(_critical, "pending", None), None
        if stop is not None and not outer:
            raise stop


def publish_json(uri: str, value: Any) -> None:
    """Write a marker, record or manifest of a ds: refused if its lease is lost or a later holder has written it."""
    held = day_token()
    with publishing():
        storage.write_json(uri, value, fence=held[1] if held and held[0] in uri.split("/") else 0)


def interrupt(stop: BaseException) -> None:
    """Raise `stop` in the main thread, from a signal handler: now, or behind the commit that is being made."""
    if getattr(_critical, "depth", 0):
        _critical.pending = stop
    else:
        raise stop


def _parsed(content: bytes) -> Holder:
    """The holder in a lock file. One that is empty, cut off or of an earlier release holds for the usual time."""
    try:
        values = json.loads(content)
        return Holder(**{field.name: values[field.name] for field in fields(Holder)})
    except (ValueError, TypeError, KeyError):
        known = content.decode(errors="replace").strip() if content and not content.startswith(b"{") else ""
        return Holder(known or "unknown", 0, "", 0, "", "", SECONDS)


def _holder(purpose: str, *, token: int, seconds: float) -> Holder:
    words = f"{purpose}, process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}"
    return Holder(words, token, _host(), os.getpid(), _started(os.getpid()), uuid.uuid4().hex, seconds)


def _host() -> str:
    """This host, and the process ids that mean something here; "" if the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in ticks since the host's start; "" if there is no such process, or it has ended."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in "ZX" else after_name[19]


def _free(current: StoredObject, holder: Holder) -> bool:
    """Whether a lease on S3 may be taken: released, not renewed in time, or of a process of this host that is gone."""
    if holder.released or current.age_s > holder.seconds + _CLOCK_STEP_S:
        return True
    return bool(holder.host) and holder.host == _host() and _started(holder.pid) != holder.started


def _refuse(uri: str, holder: str) -> BusyError:
    return BusyError(
        f"{uri} is held by another run ({holder or 'unknown'}): wait for it to end (`--wait` does) or stop it"
    )


@contextlib.contextmanager
def _noted(
    take: Callable[[], contextlib.AbstractContextManager[Lease]], uri: str, wait: Waiting | None
) -> Iterator[Lease]:
    """Know what this process holds, and end what works for it before it is released by an interruption."""
    with _waited(take, uri, wait) as taken:
        _held.append(taken)
        try:
            yield taken
        except (KeyboardInterrupt, SystemExit, FencedError):
            _end_work()
            if taken.lost:
                raise taken.lost_error() from None
            raise
        finally:
            _held.remove(taken)


def _end_work() -> None:
    while _at_stop:
        with contextlib.suppress(Exception):
            _at_stop.pop()()


@contextlib.contextmanager
def _waited(
    take: Callable[[], contextlib.AbstractContextManager[Lease]], uri: str, wait: Waiting | None
) -> Iterator[Lease]:
    with contextlib.ExitStack() as stack:
        while True:
            try:
                taken = stack.enter_context(take())
                break
            except BusyError:
                if wait is None:
                    raise
            wait(lease_holder(uri))
            time.sleep(_S3_POLL_S if is_s3(uri) else _LOCAL_POLL_S)
        yield taken


@contextlib.contextmanager
def _local_lease(uri: str, purpose: str, seconds: float) -> Iterator[Lease]:
    make_parent(uri)
    with open(absolute(uri), "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _refuse(uri, _parsed(file.read().encode()).holder) from None
        file.seek(0)
        token = max(_parsed(file.read().encode()).token + 1, int(time.time()))
        file.seek(0)
        file.truncate()
        file.write(json.dumps(asdict(_holder(purpose, token=token, seconds=seconds))))
        file.flush()
        yield Lease(uri, token)


def _now() -> float:
    """Seconds that go on while the process or its host is stopped."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _S3Lease(Lease):
    """A lease on S3, the thread that renews it and the one that ends the work in time, whatever a renewal waits for."""

    def __init__(self, uri: str, holder: Holder, etag: str, taken_at: float) -> None:
        super().__init__(uri, holder.token)
        self.holder, self._etag, self._renewed_at = holder, etag, taken_at
        self._done, self._taken, self._failure = threading.Event(), threading.Event(), "no answer"
        self._losing = threading.Lock()
        self._main = threading.current_thread() is threading.main_thread()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._renew, self._watch)]
        for thread in self._threads:
            thread.start()

    @property
    def _left(self) -> float:
        return self._renewed_at + self.holder.seconds - _now()

    def ensure(self) -> None:
        """Ask the server; FencedError unless the lease is this one's, for long enough to end a commit."""
        if not self.lost and self._left > self.holder.seconds / 4:
            with contextlib.suppress(FileNotFoundError):
                if _parsed(object_store.get(self.uri).content).hold == self.holder.hold:
                    return
        if not self._lose() and self._main and threading.current_thread() is threading.main_thread():
            time.sleep(self.holder.seconds / 8)  # `_watch` was first, and its interruption is on its way to here
        raise self.lost_error()

    def _lose(self) -> bool:
        """Note that it is lost. Whether nobody did before: who is first ends the block, and nobody else."""
        with self._losing:
            first, self.lost = not self.lost, True
        return first

    def release(self) -> None:
        """Leave the lock file with the token, unless it is another's by now."""
        self._done.set()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(Exception):  # not ours, or out of reach: it ends by itself
            self._put({"released": True})

    def _put(self, changed: dict[str, Any]) -> None:
        patient = object_store.client(attempts=1, connect_s=3, read_s=5)
        content = json.dumps(asdict(self.holder) | changed).encode()
        self._etag = object_store.put(self.uri, content, if_match=self._etag, client_=patient)

    def _renew(self) -> None:
        pause = self.holder.seconds / 6
        while not self._done.wait(pause):
            asked_at = _now()
            try:
                self._put({})
            except ConflictError:
                if not self._still_ours():
                    self._taken.set()
                    return
            except Exception as error:  # of the store, its client or the network: of no common kind
                pause, self._failure = min(1.0, self.holder.seconds / 20), type(error).__name__
            else:
                self._renewed_at, pause = asked_at, self.holder.seconds / 6

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self.holder.seconds / 40)):
            if self._taken.is_set() or self._left < self.holder.seconds / 4:
                first, why = self._lose(), "another run has it" if self._taken.is_set() else self._failure
                if first:
                    _LOG.error("%s cannot be renewed (%s)", self.uri, why)
                self._see_the_end(interrupt=first)
                return

    def _still_ours(self) -> bool:
        """After a conflict: whether it was a renewal of this lease whose answer was lost; also if nobody answers."""
        try:
            current = object_store.get(self.uri, object_store.client(attempts=2, connect_s=3, read_s=5))
        except FileNotFoundError:
            return False
        except Exception as error:
            self._failure = type(error).__name__
            return True
        self._etag = current.etag
        return _parsed(current.content).hold == self.holder.hold

    def _see_the_end(self, *, interrupt: bool) -> None:
        """Wait for the end of the block; at the end of the lease end the process.

        interrupt: end the block by a signal to the main thread, which may wait in an engine.
        """
        if not self._main:
            return
        if interrupt:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if not self._done.wait(max(self._left, self.holder.seconds / 8)):
            _LOG.error("%s is lost and the work did not end: this process ends", self.uri)
            os._exit(EXIT_LOST)


@contextlib.contextmanager
def _s3_lease(uri: str, purpose: str, seconds: float) -> Iterator[Lease]:
    held = _take(uri, purpose, seconds)
    try:
        yield held
    finally:
        held.release()


def _take(uri: str, purpose: str, seconds: float) -> _S3Lease:
    current, found = None, None
    with contextlib.suppress(FileNotFoundError):
        current = object_store.get(uri)
        found = _parsed(current.content)
        if not _free(current, found):
            raise _refuse(uri, found.holder)
    clock = current.now if current else time.time()
    holder = _holder(purpose, token=max(found.token + 1 if found else 0, int(clock)), seconds=seconds)
    content, asked_at = json.dumps(asdict(holder)).encode(), _now()
    try:
        etag = object_store.put(uri, content, if_match=current.etag if current else None, if_none_match=current is None)
    except ConflictError:  # another run's, or our own request, repeated after its answer was lost
        current = object_store.get(uri)
        found = _parsed(current.content)
        if found.hold != holder.hold:
            raise _refuse(uri, found.holder) from None
        etag = current.etag
    return _S3Lease(uri, holder, etag, asked_at)
