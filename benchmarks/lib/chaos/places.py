"""Where chaos works: in a workspace on a small disk of its own, or on an S3 server behind a proxy that injects faults.

A workspace is made once, kept as it was after the day before, and put back before each round.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.lib.fault_proxy import FaultProxy, Faults
from benchmarks.lib.s3_server import environment, s3_server

DISK_MB = 256
FAULTS = Faults(errors=0.05, delays=0.01, resets=0.01, delay_s=(0.5, 2.0))
BUCKET, KEPT = "chaos", "chaos-kept"


class Place:
    """A folder with logs, a configuration file and a workspace, and how to disturb it."""

    has_disk = False  # that can be filled, and mounted again without the right to write

    def __init__(self, root: Path, settings: Mapping[str, Any]) -> None:
        self.root, self.scratch, self.config_file = root, root / "tmp", root / "daily.yaml"
        for folder in (root, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        content = {**settings, **self.settings()}
        content["logs"] = {**settings.get("logs", {}), **content["logs"]}
        self.config_file.write_text(yaml.safe_dump(content))

    def settings(self) -> dict[str, Any]:
        """Where workspace, logs and registry are, as the configuration says it."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Of a run: temporary files in a folder that nobody else uses."""
        return {
            **os.environ,
            "TMPDIR": str(self.scratch),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def close(self) -> None:
        """Give back what the place has started or mounted."""
        raise NotImplementedError

    def keep(self) -> None:
        """Keep the workspace as it is now."""
        raise NotImplementedError

    def restore(self) -> None:
        """Put back what was kept."""
        raise NotImplementedError

    def full(self) -> contextlib.AbstractContextManager[None]:
        """No more room on the workspace's disk while the block runs."""
        raise NotImplementedError

    def read_only(self) -> contextlib.AbstractContextManager[None]:
        """Nothing of the workspace can be written while the block runs."""
        raise NotImplementedError

    def outage(self, seconds: float) -> None:
        """The store is out of reach from now on, for so long."""
        raise NotImplementedError

    def wait_for_calm(self) -> None:
        """Wait until the store is in reach again."""


class LocalPlace(Place):
    """A workspace on a file system of its own, of `DISK_MB`, where this process may mount one (`has_disk`)."""

    name = "local"

    def __init__(self, root: Path, settings: Mapping[str, Any], *, has_disk: bool, logs: str = "") -> None:
        self.disk, self.has_disk, self.logs = root / "disk", has_disk, logs or f"{root.parent}/logs"
        self.disk.mkdir(parents=True, exist_ok=True)
        if has_disk:
            _mount("-t", "tmpfs", "-o", f"size={DISK_MB}m", "chaos", str(self.disk))
        super().__init__(root, settings)

    def close(self) -> None:
        """Take the file system away."""
        if self.has_disk:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=False)

    @property
    def workspace(self) -> str:
        """Its folder."""
        return str(self.disk / "workspace")

    def settings(self) -> dict[str, Any]:
        """Everything on the local disk."""
        logs = {"path": f"{self.logs}/plays", "catalogue": f"{self.logs}/catalogue"}
        return {"workspace": self.workspace, "logs": logs}

    def keep(self) -> None:
        """A copy of the folder."""
        shutil.copytree(self.workspace, self.root / "kept", dirs_exist_ok=True)

    def restore(self) -> None:
        """The folder, by a copy."""
        shutil.rmtree(self.workspace, ignore_errors=True)
        shutil.copytree(self.root / "kept", self.workspace)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """A file takes all the room that is left."""
        ballast = self.disk / "ballast"
        try:
            with ballast.open("wb", buffering=0) as stream:
                for size in (1 << 20, 1 << 12, 1):
                    with contextlib.suppress(OSError):
                        while stream.write(b"\0" * size):
                            pass
            yield
        finally:
            ballast.unlink()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """The file system, mounted again without the right to write."""
        _mount("-o", "remount,ro", str(self.disk))
        try:
            yield
        finally:
            _mount("-o", "remount,rw", str(self.disk))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


class S3Place(Place):
    """A workspace and logs on an S3 server (moto) in a process of its own; runs reach it through the proxy."""

    name = "s3"
    workspace = f"s3://{BUCKET}/workspace"

    def __init__(self, root: Path, settings: Mapping[str, Any], *, seed: int) -> None:
        self._servers = contextlib.ExitStack()
        self.endpoint = self._servers.enter_context(s3_server())
        os.environ |= environment(self.endpoint, key="chaos", secret="chaos-key")
        self.proxy = self._servers.enter_context(FaultProxy(self.endpoint, FAULTS, seed=seed))
        self.faulty = False
        super().__init__(root, settings)
        for bucket in (BUCKET, KEPT):
            self._client().create_bucket(Bucket=bucket)

    def close(self) -> None:
        """End server and proxy."""
        self._servers.close()

    def settings(self) -> dict[str, Any]:
        """Everything on S3 but MLflow's database, which is beside the configuration."""
        return {
            "workspace": self.workspace,
            "logs": {"path": f"s3://{BUCKET}/logs/plays", "catalogue": f"s3://{BUCKET}/logs/catalogue"},
            "mlflow": {"tracking_uri": f"sqlite:///{self.root}/mlflow.db"},
        }

    def environment(self) -> dict[str, str]:
        """Through the proxy, once the day before is there."""
        endpoint = self.proxy.url if self.faulty else self.endpoint
        return {**super().environment(), "AWS_ENDPOINT_URL": endpoint}

    def upload_logs(self, logs: Path) -> None:
        """The logs, which stay as they are."""
        from pipelines import storage

        storage.upload_folder(str(logs), f"s3://{BUCKET}/logs")

    def keep(self) -> None:
        """Copies in another bucket, and of the database."""
        self._copy(BUCKET, KEPT)
        shutil.copy2(self.root / "mlflow.db", self.root / "mlflow.kept")

    def restore(self) -> None:
        """The objects of the workspace, and the database."""
        client = self._client()
        for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
            client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
        for key in self._keys(BUCKET):
            client.delete_object(Bucket=BUCKET, Key=key)
        self._copy(KEPT, BUCKET)
        shutil.copy2(self.root / "mlflow.kept", self.root / "mlflow.db")

    def outage(self, seconds: float) -> None:
        """Every connection is reset."""
        self.proxy.outage(seconds)

    def wait_for_calm(self) -> None:
        """For the end of the outage."""
        self.proxy.wait_for_calm()

    def _copy(self, source: str, target: str) -> None:
        for key in self._keys(source):
            self._client().copy_object(Bucket=target, Key=key, CopySource={"Bucket": source, "Key": key})

    def _keys(self, bucket: str) -> list[str]:
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="workspace/")
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def _client(self) -> Any:
        from pipelines import object_store

        return object_store.client()
