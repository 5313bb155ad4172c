"""Which implementation of the model's operators this process uses (`cluster.kernels`), built before it is needed."""

import contextlib

from jobs.config import ClusterConfig
from jobs.runtime.console import log
from pipelines.errors import InputError


def choose(cluster: ClusterConfig) -> None:
    """Follow the configuration in this process. InputError if it asks for kernels that cannot be had."""
    from fuxi_beta import ops

    try:
        ops.use(cluster.kernels)
    except ValueError as error:
        raise InputError(f"cluster.kernels is {cluster.kernels!r}: {error}: or set cluster.kernels=auto") from None


def prepare_for_training(cluster: ClusterConfig) -> None:
    """Have the kernels built before workers ask for them, where workers are on this machine and have no GPU."""
    from fuxi_beta import ops
    from fuxi_beta.ops.cpu import build

    if cluster.ray_address != "local" or cluster.train_gpus_per_worker:
        return
    with contextlib.suppress(build.KernelError):
        if cluster.kernels != "reference" and not build.is_built(build.cached_library()):
            log("building C++ kernels", once="a machine", seconds="about 20")
    choose(cluster)
    log("kernels", training=ops.describe())
