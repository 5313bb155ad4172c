"""Leases: one holder at a time for a name below a workspace, on disk or on S3."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

from pipelines.errors import BusyError
from pipelines.storage import absolute, is_s3, make_parent, read_bytes


def lease(uri: str, *, purpose: str, seconds: float = 120.0) -> contextlib.AbstractContextManager[None]:
    """Hold the lock file `uri` while the block runs; BusyError if another process holds it.

    A local lease is a lock of the kernel, which releases it when the process ends in any way. On S3 it is an object
    created by a conditional put and renewed every third of `seconds`; after `seconds` without renewal another process
    may take it over.
    """
    return _s3_lease(uri, purpose, seconds) if is_s3(uri) else _local_lease(uri, purpose)


def lease_holder(uri: str) -> str:
    """Who holds a lock file at this moment; "" if nobody does. Neither takes the lease nor writes anything."""
    if is_s3(uri):
        try:
            content = json.loads(read_bytes(uri))
        except FileNotFoundError:
            return ""
        return content["holder"] if content["expires"] > time.time() else ""
    try:
        with open(absolute(uri)) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "unknown"
    except FileNotFoundError:
        pass
    return ""


def _holder(purpose: str) -> str:
    return f"{purpose}, process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}"


def _refuse(uri: str, holder: str) -> BusyError:
    return BusyError(f"{uri} is held by another run ({holder or 'unknown'}): wait for it to end or stop it")


@contextlib.contextmanager
def _local_lease(uri: str, purpose: str) -> Iterator[None]:
    make_parent(uri)
    with open(absolute(uri), "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _refuse(uri, file.read().strip()) from None
        file.seek(0)
        file.truncate()
        file.write(_holder(purpose))
        file.flush()
        yield


@contextlib.contextmanager
def _s3_lease(uri: str, purpose: str, seconds: float) -> Iterator[None]:
    import boto3
    from botocore.exceptions import ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    etag = ""

    def put(**condition: str) -> None:
        nonlocal etag
        body = json.dumps({"holder": _holder(purpose), "expires": time.time() + seconds}).encode()
        etag = client.put_object(Bucket=bucket, Key=key, Body=body, **condition)["ETag"]

    try:
        put(IfNoneMatch="*")
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise
        current = client.get_object(Bucket=bucket, Key=key)
        content = json.loads(current["Body"].read())
        if content["expires"] > time.time():
            raise _refuse(uri, content["holder"]) from None
        put(IfMatch=current["ETag"])

    done = threading.Event()

    def renew() -> None:
        while not done.wait(seconds / 3):
            put(IfMatch=etag)

    renewer = threading.Thread(target=renew, daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
        client.delete_object(Bucket=bucket, Key=key)
