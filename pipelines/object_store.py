"""S3: one policy of retries, time-outs and encryption for every library that talks to the server.

Whole objects are read by one GET and written by one PUT (boto3); listings and parts of big files go through PyArrow,
Delta tables through delta-rs. Credentials come from the environment or the cloud's identity, `AWS_ENDPOINT_URL`
selects another server than Amazon's. `AWS_SERVER_SIDE_ENCRYPTION` (AES256 or aws:kms) and `AWS_SSE_KMS_KEY_ID` ask for
encryption of all that is written.
"""

import contextlib
import datetime as dt
import functools
import io
import os
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlparse

import pyarrow.fs as pafs

from pipelines.errors import FencedError, InputError

ATTEMPTS = 10
"""Tries of a request that a 5xx, SlowDown, a reset or a time-out ended; the pauses double to 20 s, 50 s in all."""
CONNECT_S, READ_S = 5, 30
ENVIRONMENT = (
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_KMS_KEY_ID",
)
"""What every process that reads or writes must have in its environment."""
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_PART_BYTES = 16 << 20
_ONE_PUT_BYTES = 64 << 20
_STALE_UPLOAD = dt.timedelta(days=2)
_PASSING_STATUS = (429, 500, 502, 503, 504)
_PASSING_CODES = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "OperationAborted")
_FENCE, _WRITE = "fence", "write"
"""Metadata of an object: the token of the lease it was written under, and an id of the write."""


class ConflictError(Exception):
    """A conditional write found another object than it wanted."""


@dataclass(frozen=True)
class StoredObject:
    """An object as one answer of the server has it. `age_s`: since it was written, by the server's clock."""

    content: bytes
    etag: str
    age_s: float
    now: float  # the server's clock, Unix seconds
    metadata: Mapping[str, str]


def client(*, attempts: int = 0, connect_s: float = CONNECT_S, read_s: float = READ_S) -> Any:
    """This process's boto3 client under the policy; safe to use from several threads. attempts: if not `ATTEMPTS`."""
    known = tuple(os.environ.get(name) for name in (*ENVIRONMENT, *CREDENTIALS))
    return _client((os.getpid(), *known), attempts or ATTEMPTS, connect_s, read_s)


@functools.lru_cache(maxsize=8)
def _client(_: tuple[Any, ...], attempts: int, connect_s: float, read_s: float) -> Any:
    import boto3
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": 1}
    config = Config(retries=retries, connect_timeout=connect_s, read_timeout=read_s, max_pool_connections=32)  # type: ignore[arg-type]
    made = boto3.Session().client("s3", config=config)
    # botocore's own retries share a quota, which 32 threads have used up within seconds of an outage: then none waits.
    made.meta.events.register("needs-retry.s3", functools.partial(_pause_before_retry, attempts))
    return made


def _pause_before_retry(most: int, *, response: Any, attempts: int, caught_exception: Any, **_: Any) -> float | None:
    """Seconds after which botocore sends a request again; None if it does not. attempts: that were made."""
    passing = isinstance(caught_exception, _broken_bodies())
    if response is not None:
        answer, parsed = response
        passing = answer.status_code in _PASSING_STATUS or parsed.get("Error", {}).get("Code") in _PASSING_CODES
    return _pause(attempts) if passing and attempts < most else None


def filesystem() -> pafs.FileSystem:
    """This process's PyArrow filesystem under the policy."""
    known = tuple(os.environ.get(name) for name in (*ENVIRONMENT, *CREDENTIALS))
    return _filesystem((os.getpid(), *known))


@functools.lru_cache(maxsize=4)
def _filesystem(_: tuple[Any, ...]) -> pafs.FileSystem:
    options: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        parsed = urlparse(endpoint)
        options = {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    # The AWS library's standard strategy shares a quota among all requests, as botocore's does; this one has none.
    policy = pafs.AwsDefaultS3RetryStrategy(max_attempts=ATTEMPTS + 1)  # 0.05 s to 26 s, 51 s in all
    plain = pafs.S3FileSystem(retry_strategy=policy, connect_timeout=CONNECT_S, request_timeout=READ_S, **options)
    return pafs.PyFileSystem(EncryptingHandler(plain)) if encryption() else plain


def delta_options() -> dict[str, str]:
    """`storage_options` for delta-rs under the policy. Credentials and encryption are left to the environment."""
    options = {
        "max_retries": str(ATTEMPTS),
        "retry_timeout": "120s",
        "backoff_config.init_backoff": "500ms",
        "backoff_config.max_backoff": "20s",
        "connect_timeout": f"{CONNECT_S}s",
        "timeout": f"{READ_S}s",
    }
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        options |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}
    return options


def encryption() -> dict[str, str]:
    """Arguments of boto3's writes that ask for encryption; none if the bucket's default will do."""
    kind, key = (os.environ.get(name) for name in ("AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID"))
    return ({"ServerSideEncryption": kind} if kind else {}) | ({"SSEKMSKeyId": key} if kind and key else {})


def is_of_store(error: BaseException) -> bool:
    """Whether an error of PyArrow says that the store did not answer, or refused, and nothing of an object."""
    text = str(error)
    return "AWS Error" in text and not any(reason in text for reason in ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND"))


def get(uri: str, client_: Any = None) -> StoredObject:
    """An object in one request. FileNotFoundError, or InputError if there is no bucket, answer or permission."""
    bucket, key = split(uri)
    for pause in pauses():
        with _explained(uri):
            answer = (client_ or client()).get_object(Bucket=bucket, Key=key)  # which the client itself repeats
            try:
                content = answer["Body"].read()
            except _broken_bodies():
                if pause is None:
                    raise
            else:
                now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
                age = (now - answer["LastModified"]).total_seconds()
                return StoredObject(content, answer["ETag"], age, now.timestamp(), answer.get("Metadata", {}))
        time.sleep(pause or 0)
    raise AssertionError("the last attempt returns or raises")


def put(
    uri: str,
    content: bytes,
    *,
    if_match: str | None = None,
    if_none_match: bool = False,
    metadata: Mapping[str, str] | None = None,
    client_: Any = None,
) -> str:
    """Write an object in one request and return its ETag. ConflictError if the condition does not hold.

    if_match: only over this ETag. if_none_match: only if there is no object. After a request whose answer was lost,
    the repetition may conflict with what this call itself has written: tell them apart by the content or metadata.
    """
    bucket, key = split(uri)
    condition = ({"IfMatch": if_match} if if_match else {}) | ({"IfNoneMatch": "*"} if if_none_match else {})
    noted = {"Metadata": dict(metadata)} if metadata else {}
    with _explained(uri):
        if len(content) > _ONE_PUT_BYTES and not condition:
            (client_ or client()).upload_fileobj(
                io.BytesIO(content), bucket, key, ExtraArgs={**encryption(), **noted} or None
            )
            return ""
        answer = (client_ or client()).put_object(
            Bucket=bucket, Key=key, Body=content, **condition, **noted, **encryption()
        )
    return answer["ETag"]


def put_fenced(uri: str, content: bytes, fence: int) -> None:
    """Write an object unless it was written under a later fencing token; FencedError then, and nothing is written.

    The write is conditional on the object that was looked at, so a holder that was stopped between the look and the
    write does not replace what its successor wrote meanwhile.
    """
    bucket, key = split(uri)
    write = uuid.uuid4().hex
    while True:
        etag, found = "", {}
        with _explained(uri), contextlib.suppress(FileNotFoundError):
            head = _head(bucket, key)
            etag, found = head["ETag"], head.get("Metadata", {})
        if found.get(_WRITE) == write:
            return
        if int(found.get(_FENCE, 0)) > fence:
            raise FencedError(f"{uri} was written by a later run, which has taken over: nothing is written here")
        metadata = {_FENCE: str(fence), _WRITE: write}
        with contextlib.suppress(ConflictError):
            put(uri, content, if_match=etag or None, if_none_match=not etag, metadata=metadata)
            return


def _head(bucket: str, key: str) -> Any:
    from botocore.exceptions import ClientError

    try:
        return client().head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
            raise FileNotFoundError(f"s3://{bucket}/{key}") from None
        raise


def check_reachable(uri: str) -> None:
    """InputError within seconds if the bucket of a URI is not there, or the server does not answer."""
    from botocore.exceptions import ClientError

    bucket, _ = split(uri)
    try:
        with _explained(uri):
            client(attempts=3, connect_s=3, read_s=5).list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError as error:
        reason = error.response["Error"]
        raise InputError(f"{uri}: {endpoint()} refuses ({reason.get('Code')}): see whether the server runs") from None


def abort_uploads(uri: str, *, own: str) -> int:
    """Remove unfinished multipart uploads below a URI: those of killed runs, whose parts are stored and billed.

    own: a part of the path, as "/ds=2026-03-02/", below which the caller alone writes: all there are removed; of the
    others those that began two days ago. Returns how many were removed.
    """
    bucket, prefix = split(uri)
    removed = 0
    with _explained(uri):
        pages = client().get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        for upload in (upload for page in pages for upload in page.get("Uploads", ())):
            old = dt.datetime.now(dt.UTC) - upload["Initiated"] > _STALE_UPLOAD
            if upload["Key"].startswith(f"{prefix}/") and (old or own in upload["Key"]):
                client().abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                removed += 1
    return removed


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3 URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/")


def endpoint() -> str:
    """The server in words."""
    return os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3"


def pauses() -> Iterator[float | None]:
    """Seconds to wait after each attempt, with full jitter; None after the last."""
    for attempt in range(1, ATTEMPTS):
        yield _pause(attempt)
    yield None


def _pause(attempts: int) -> float:
    return random.uniform(0, min(20.0, 2.0 ** (attempts - 1)))


def _broken_bodies() -> tuple[type[Exception], ...]:
    """Errors of a connection that ended within an answer, which botocore does not retry."""
    from botocore.exceptions import ConnectionError, HTTPClientError, IncompleteReadError

    return ConnectionError, HTTPClientError, IncompleteReadError


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Errors of boto3 as FileNotFoundError, ConflictError or an InputError of one line; others as they are."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        code = error.response["Error"].get("Code", "")
        if code == "NoSuchKey":
            raise FileNotFoundError(uri) from None
        if code in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
            raise ConflictError(uri) from None
        if code == "NoSuchBucket":
            bucket = f"s3://{split(uri)[0]}"
            raise InputError(f"{uri}: there is no bucket {bucket}: create it, or correct the URI") from None
        if code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403"):
            raise InputError(
                f"{uri}: {endpoint()} refuses the credentials ({code}): correct AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or the rights of this machine's role"
            ) from None
        raise
    except NoCredentialsError:
        raise InputError(f"{uri}: there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except (BotoCoreError, Boto3Error) as error:
        if isinstance(error, (*_broken_bodies(), Boto3Error)):
            raise InputError(
                f"{uri}: {endpoint()} does not answer ({type(error).__name__}): see whether the server runs and "
                "AWS_ENDPOINT_URL is right, then run again"
            ) from None
        raise


class EncryptingHandler(pafs.FileSystemHandler):
    """PyArrow's S3 filesystem, but for output streams: it cannot ask for encryption, boto3's uploads can."""

    def __init__(self, plain: pafs.FileSystem) -> None:
        self.plain = plain

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        """An object that is complete, and visible, when the stream is closed."""
        import pyarrow as pa

        return pa.PythonFile(_Upload(path), mode="w")

    def __hash__(self) -> int:
        return hash(self.plain.type_name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EncryptingHandler) and self.plain == other.plain

    def get_type_name(self) -> str:
        """As PyArrow's."""
        return self.plain.type_name

    def normalize_path(self, path: str) -> str:
        """As PyArrow's."""
        return self.plain.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> Any:
        """As PyArrow's."""
        return self.plain.get_file_info(paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> Any:
        """As PyArrow's."""
        return self.plain.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: object stores have no folders."""

    def delete_dir(self, path: str) -> None:
        """As PyArrow's."""
        self.plain.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """As PyArrow's."""
        self.plain.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        """Refused: nothing empties a server."""
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        """As PyArrow's."""
        self.plain.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        """Refused: a move is a copy, which PyArrow does without encryption."""
        raise NotImplementedError

    def copy_file(self, src: str, dest: str) -> None:
        """By one request of the server."""
        (bucket, key), source = split(dest), split(src)
        client().copy_object(Bucket=bucket, Key=key, CopySource={"Bucket": source[0], "Key": source[1]}, **encryption())

    def open_input_stream(self, path: str) -> Any:
        """As PyArrow's."""
        return self.plain.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        """As PyArrow's."""
        return self.plain.open_input_file(path)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        """Refused: objects are written whole."""
        raise NotImplementedError


class _Upload(io.RawIOBase):
    """A multipart upload, or one PUT if it is small."""

    def __init__(self, path: str) -> None:
        self.bucket, self.key = split(path)
        self._buffer, self._parts, self._id = bytearray(), [], ""

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        self._buffer += content
        if len(self._buffer) >= _PART_BYTES:
            self._send()
        return len(content)

    def _send(self) -> None:
        where = {"Bucket": self.bucket, "Key": self.key}
        if not self._id:
            self._id = client().create_multipart_upload(**where, **encryption())["UploadId"]
        number = len(self._parts) + 1
        part = client().upload_part(**where, UploadId=self._id, PartNumber=number, Body=bytes(self._buffer))
        self._parts.append({"PartNumber": number, "ETag": part["ETag"]})
        self._buffer.clear()

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if not self._id:
            put(f"s3://{self.bucket}/{self.key}", bytes(self._buffer))
            return
        if self._buffer:
            self._send()
        client().complete_multipart_upload(
            Bucket=self.bucket, Key=self.key, UploadId=self._id, MultipartUpload={"Parts": self._parts}
        )
