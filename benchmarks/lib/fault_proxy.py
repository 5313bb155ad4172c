"""A proxy on loopback before an S3 server that injects faults: 503 SlowDown, delays, connection resets, answers
that end in their middle, outages, lists that lack the newest objects.

    with FaultProxy("http://127.0.0.1:5000", Faults(errors=0.05, delays=0.03, resets=0.02), seed=1) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        ...
        proxy.outage(20)  # from now on, seconds in which every request is reset
        print(proxy.counts)

Or as a process of its own, which prints its URL, takes `outage SECONDS` as a line on standard input, and prints the
counts at the end of standard input:

    python -m benchmarks.lib.fault_proxy http://127.0.0.1:5000 --errors 0.05 --seed 1
"""

import argparse
import http.client
import json
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit
from xml.etree import ElementTree

SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
_SHORT = 1000
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "server", "date"}


@dataclass(frozen=True)
class Faults:
    """Shares of requests, each between 0 and 1, and what they meet."""

    errors: float = 0.0  # answered by 503 SlowDown, not forwarded
    delays: float = 0.0  # forwarded after `delay_s`
    resets: float = 0.0  # connection reset: half of them before, half of them after the server has done the request
    breaks: float = 0.0  # of an answer with more than `_SHORT` bytes the first half, then the end of the connection
    delay_s: tuple[float, float] = (2.0, 5.0)  # drawn uniformly
    stale_lists: float = 0.0  # no share: seconds for which a new object is in no list; read by its name, it is there
    stale_commits: float = -1.0  # the same of commits of Delta tables; below 0: as all objects


class FaultProxy:
    """Serves while the block runs.

    counts: requests by what they met ("requests", "errors", "delays", ...). traffic: those that were answered, by what
    they are ("list", "get", "head", "put", "delete"; a part of an upload is a put), and bytes "in" and "out" of the
    store.
    """

    def __init__(self, target: str, faults: Faults = Faults(), *, seed: int = 0, port: int = 0) -> None:
        self.target, self.faults, self.counts = urlsplit(target), faults, Counter[str]()
        self.traffic = Counter[str]()
        self._new: dict[str, float] = {}  # path of an object that came through here -> when it was first written
        self._random, self._lock, self._outage_until, self._silent = random.Random(seed), threading.Lock(), 0.0, False
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def outage(self, seconds: float, *, silent: bool = False) -> None:
        """Reset every connection for so long from now on, `silent`: at the end of it; 0 ends an outage."""
        self._outage_until, self._silent = time.monotonic() + seconds, silent

    def wait_for_calm(self) -> None:
        """Wait for the end of an outage."""
        time.sleep(max(0.0, self._outage_until - time.monotonic()))

    def silence(self) -> None:
        """Wait for the end of a silent outage."""
        while self._silent and time.monotonic() < self._outage_until:
            time.sleep(0.05)

    def note(self, verb: str, path: str, bytes_in: int, bytes_out: int) -> None:
        """Count a request that is answered."""
        query = parse_qs(urlsplit(path).query, keep_blank_values=True)
        if verb == "POST":
            kind = "delete" if "delete" in query else "put"  # many keys at once; the begin and the end of an upload
        elif verb == "GET":
            kind = "list" if query.keys() & {"list-type", "prefix", "uploads", "delimiter"} else "get"
        else:
            kind = verb.lower()
        with self._lock:
            self.traffic.update({kind: 1, "in": bytes_in, "out": bytes_out})

    def writes_new(self, verb: str, path: str) -> bool:
        """Whether a request will make an object that is not there."""
        url = urlsplit(path)
        query = parse_qs(url.query, keep_blank_values=True)
        writes = (verb == "PUT" and "partNumber" not in query) or (verb == "POST" and "uploadId" in query)
        return writes and self._ask("HEAD", url.path)[0] == 404

    def note_new(self, path: str) -> None:
        """Remember when an object was written that was not there."""
        with self._lock:
            self._new[unquote(urlsplit(path).path)] = time.monotonic()

    def _ask(self, verb: str, path: str) -> tuple[int, bytes]:
        server = http.client.HTTPConnection(self.target.hostname or "", self.target.port, timeout=60)
        try:
            server.request(verb, path)
            answer = server.getresponse()
            return answer.status, answer.read()
        finally:
            server.close()

    def without_new(self, path: str, content: bytes) -> bytes:
        """The answer to a list request without objects, and folders of nothing but objects, that are too new."""
        bucket, now = urlsplit(path).path.strip("/"), time.monotonic()
        usual, commits = self.faults.stale_lists, self.faults.stale_commits
        with self._lock:
            new = {
                key
                for key, at in self._new.items()
                if now - at < (commits if commits >= 0 and "/_delta_log/" in key else usual)
            }
        found = ElementTree.fromstring(content)
        space = found.tag.partition("}")[0] + "}" if found.tag.startswith("{") else ""
        left_out = 0
        for kind, name in (("Contents", "Key"), ("CommonPrefixes", "Prefix")):
            for entry in found.findall(f"{space}{kind}"):
                key = unquote(entry.findtext(f"{space}{name}") or "")
                if f"/{bucket}/{key}" in new or (kind == "CommonPrefixes" and self._all_new(bucket, key, new)):
                    found.remove(entry)
                    left_out += 1
        if (count := found.find(f"{space}KeyCount")) is not None:
            count.text = str(int(count.text or 0) - left_out)
        with self._lock:
            self.counts["left_out"] += left_out
        ElementTree.register_namespace("", space.strip("{}"))
        return ElementTree.tostring(found)

    def _all_new(self, bucket: str, prefix: str, new: set[str]) -> bool:
        """Whether there is nothing below a prefix but new objects."""
        if not any(key.startswith(f"/{bucket}/{prefix}") for key in new):
            return False
        _, content = self._ask("GET", f"/{bucket}?{urlencode({'list-type': 2, 'prefix': prefix})}")
        listed = ElementTree.fromstring(content)
        keys = [entry.text or "" for entry in listed.iter() if entry.tag.endswith("}Key") or entry.tag == "Key"]
        return all(f"/{bucket}/{key}" in new for key in keys)

    def draw(self) -> tuple[str, float]:
        """What the next request meets, and the seconds it waits before."""
        with self._lock:
            chance, wait, late = (
                self._random.random(),
                self._random.uniform(*self.faults.delay_s),
                self._random.random(),
            )
            self.counts["requests"] += 1
            kind = "forwarded"
            for name in ("errors", "delays", "resets", "breaks"):
                chance -= getattr(self.faults, name)
                if chance < 0:
                    kind = name
                    break
            if kind == "resets" and late < 0.5:
                kind = "late_resets"
            if time.monotonic() < self._outage_until:
                kind = "outage"
            self.counts[kind] += 1
        return kind, wait if kind == "delays" else 0.0


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer's body waits 40 ms for the head's acknowledgement

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the counts say what happened."""

    def _handle(self) -> None:
        kind, wait = self.proxy.draw()
        if kind in ("outage", "resets"):
            self.proxy.silence()
            self._reset()
            return
        body = self._body()
        if kind == "errors":
            self._answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            return
        time.sleep(wait)
        makes_object = self.proxy.faults.stale_lists and self.proxy.writes_new(self.command, self.path)
        target = self.proxy.target
        server = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        try:
            headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP}
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            content = answer.read()
        except OSError:
            self._reset()
            return
        finally:
            server.close()
        if kind == "late_resets":
            self._reset()
            return
        self.proxy.note(self.command, self.path, len(body), len(content))
        if self.proxy.faults.stale_lists and answer.status == 200:
            if makes_object:
                self.proxy.note_new(self.path)
            if content.lstrip(b"\xef\xbb\xbf").find(b"<ListBucketResult") in range(200):
                content = self.proxy.without_new(self.path, content)
        kept = [(key, value) for key, value in answer.getheaders() if key.lower() not in _HOP - {"date"}]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.close_connection = broken = kind == "breaks" and len(content) > _SHORT
        self._answer(answer.status, kept, content, length, sent=len(content) // 2 if broken else None)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        length: str | None = None,
        sent: int | None = None,
    ) -> None:
        self.send_response_only(status)
        for key, value in headers:
            self.send_header(key, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])

    def _reset(self) -> None:
        """Close so that the other side sees a reset rather than an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def handle(self) -> None:
        """A client that goes away is no error."""
        try:
            super().handle()
        except (OSError, ValueError):
            self.close_connection = True

    def finish(self) -> None:
        """The same, of what is still to be written."""
        try:
            super().finish()
        except (OSError, ValueError):
            self.close_connection = True


for _verb in ("GET", "PUT", "POST", "DELETE", "HEAD"):
    setattr(_Handler, f"do_{_verb}", _Handler._handle)


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description="A proxy before an S3 server that injects faults")
    parser.add_argument("target")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("errors", "delays", "resets", "breaks"):
        parser.add_argument(f"--{name}", type=float, default=0.0, help="share of requests")
    parser.add_argument("--stale-lists", type=float, default=0.0, help="seconds for which a new object is in no list")
    parser.add_argument(
        "--stale-commits", type=float, default=-1.0, help="the same of Delta's commits; below 0: as all"
    )
    options = parser.parse_args()
    shares = options.errors, options.delays, options.resets, options.breaks
    faults = Faults(*shares, stale_lists=options.stale_lists, stale_commits=options.stale_commits)
    with FaultProxy(options.target, faults, seed=options.seed, port=options.port) as proxy:
        print(proxy.url, flush=True)
        for line in sys.stdin:
            command, _, value = line.strip().partition(" ")
            if command == "outage":
                proxy.outage(float(value))
        print(json.dumps(proxy.counts))


if __name__ == "__main__":
    main()
