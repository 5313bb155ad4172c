"""Ray Train's torch backend for one machine: ranks find each other through a file and communicate over loopback.

Ray's own `TorchConfig` opens rank 0's rendezvous on every interface of the machine. Imported where Ray Train is used.
"""

import os
import socket
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend


class LoopbackTorchConfig(TorchConfig):
    """`TorchConfig` for workers that all run on this machine; nothing listens beyond loopback."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The class that sets up and shuts down the process group."""
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    _file = ""

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: TorchConfig) -> None:
        """Join every worker to a process group; called again, with a new file, each time workers are replaced."""
        worker_group.execute(_set_torch_distributed_env_vars)
        handle, file = tempfile.mkstemp(prefix="fuxi-train-")  # the controller is on this machine, as all workers are
        os.close(handle)
        self._file = file
        world_size = len(worker_group)
        joining: list[Any] = [
            worker_group.execute_single_async(
                rank, _join, file=file, member=rank, world_size=world_size, settings=backend_config.to_dict()
            )
            for rank in range(world_size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: TorchConfig) -> None:
        """Leave the process group; also called when a worker died."""
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:
            if self._file:
                Path(self._file).unlink(missing_ok=True)


def _join(*, file: str, member: int, world_size: int, settings: dict[str, Any]) -> None:
    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        settings["backend"],
        init_method=f"file://{file}",
        rank=member,
        world_size=world_size,
        timeout=timedelta(seconds=settings["timeout_s"]),
    )
