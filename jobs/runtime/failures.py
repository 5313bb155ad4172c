"""Failures that are not the program's: of this machine, of a store or of a registry. One line each.

They are no refused input: no day is served from older histories because of them.
"""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from jobs.runtime.deaths import chain, text_of
from pipelines import object_store, storage
from pipelines.errors import InputError, MachineError

NEEDS = " needs "
"""In a note of an error that says what room a stage takes."""
_FULL = re.compile(r"No space left on device|Disk quota exceeded|\[?[Ee]rrno:? (?:28|122)\b")
_NO_RIGHT = (errno.EROFS, errno.EACCES, errno.EPERM)
_READ_ONLY = re.compile(r"Read-only file system|Permission denied")
_STORE = re.compile(
    r"AWS Error|Generic S3 error|botocore|SlowDown|ServiceUnavailable|NETWORK_CONNECTION|EndpointConnectionError"
)
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist")
_DENIED = re.compile(r"ACCESS_DENIED|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken")
_WRITTEN = re.compile(r"while writing (\S+)")  # as `storage.writing` notes it
_PATH = re.compile(r"(?:'(/[^']+)'|(/[^\s:'\"]+\.\w+))")
_REGISTRY_MODULES = ("mlflow.", "sqlalchemy.", "alembic.", "requests.", "urllib3.")


def explain(error: BaseException) -> str | None:
    """The failure in one line with its remedy; None if it is none of these and the trace is wanted."""
    chained = list(chain(error))
    for one in chained:
        if isinstance(one, InputError | MachineError):
            return str(one)
    for one in chained:
        if (text := text_of(one)) is None:
            continue
        number = getattr(one, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(text):
            return _full_disk(_place(one, text), chained)
        if isinstance(one, OSError) and (number in _NO_RIGHT or _READ_ONLY.search(text)):
            return _no_right(one, text, number or errno.EACCES)
        if _of_registry(one, text):
            return _registry(text)
        if _STORE.search(text) or type(one).__module__.startswith(("botocore.", "boto3.")):
            return _store(text)
    return None


def _no_right(error: OSError, text: str, number: int) -> str:
    writing = number == errno.EROFS or _WRITTEN.search("\n".join(getattr(error, "__notes__", ())))
    use = "written" if writing else "read or written"
    return f"{_place(error, text)} cannot be {use} ({os.strerror(number)}): correct the rights and run again"


def _full_disk(place: str, chained: Sequence[BaseException]) -> str:
    """Names the file, the room that is left beside it, and what the stage needs if it has noted that."""
    folder = Path(place).parent
    there = place.startswith("/") and folder.exists()
    left = f" ({storage.in_words(storage.free_bytes(str(folder)) or 0)} free in {folder})" if there else ""
    needs = "".join(f"; {note}" for one in chained for note in getattr(one, "__notes__", ()) if NEEDS in note)
    return f"{place}: the disk is full{left}{needs}: make room and run again; what was published is unchanged"


def _place(error: BaseException, text: str) -> str:
    name = getattr(error, "filename", None)
    text = "\n".join([text, *getattr(error, "__notes__", ())])
    if written := _WRITTEN.search(text):
        return written[1]
    found = _PATH.search(text)
    return str(name or (found and (found[1] or found[2])) or "a file of this run")


def _of_registry(error: BaseException, text: str) -> bool:
    module = type(error).__module__
    gone = r"Max retries|Connection|timed out|API request|refused|unable to open|OperationalError|resolve|5\d\d"
    return module.startswith(_REGISTRY_MODULES) and re.search(gone, f"{type(error).__name__} {text}") is not None


def _registry(text: str) -> str:
    found = re.search(r"host='([^']+)', port=(\d+)", text) or re.search(r"\w+://([^/\s@]*@)?([^\s/'\"]+)", text)
    where = ":".join(filter(None, found.groups()[-2:])) if found else "mlflow.tracking_uri"
    return f"MLflow at {where} does not answer: see whether it runs and mlflow.tracking_uri is right, then run again"


def _store(text: str) -> str:
    named = re.search(r"bucket '([^']+)'", text)
    where = f"s3://{named[1]} at {object_store.endpoint()}" if named else object_store.endpoint()
    if _NO_BUCKET.search(text):
        return f"{where}: there is no such bucket: create it, or correct the URI"
    if _DENIED.search(text):
        return f"{where} refuses the credentials: correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the rights"
    return f"{where} does not answer, or refuses for now: see whether the server runs, then run again to go on"
