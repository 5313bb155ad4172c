"""An S3 server (moto) on loopback in a process of its own."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

START_S = 60.0


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The server's URL, once it answers; it is ended with the block. RuntimeError if it does not answer in time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _answering(f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait()


def _answering(endpoint: str) -> str:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=1)
            return endpoint
        time.sleep(0.2)
    raise RuntimeError(f"no S3 server at {endpoint} after {START_S:.0f} s")


def environment(endpoint: str, *, key: str, secret: str) -> dict[str, str]:
    """What processes need in their environment to use the server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
