"""The implementation of the model's operators in this process (`cluster.kernels`): chosen, and built beforehand."""

import contextlib

from jobs.config import ClusterConfig
from jobs.runtime.console import doing, log
from pipelines.errors import InputError


def choose(cluster: ClusterConfig) -> None:
    """Use the configured kernels in this process. InputError if this machine cannot."""
    from fuxi_beta import ops

    try:
        ops.use(cluster.kernels)
    except ValueError as error:
        raise InputError(f"cluster.kernels is {cluster.kernels!r}: {error}: or set cluster.kernels=auto") from None


def prepare_for_training(cluster: ClusterConfig) -> None:
    """Build the C++ kernels before workers need them, if workers are on this machine and have no GPU."""
    from fuxi_beta import ops
    from fuxi_beta.ops.cpu import build

    if cluster.ray_address != "local" or cluster.train_gpus_per_worker:
        return
    missing = False
    with contextlib.suppress(build.KernelError):
        missing = cluster.kernels != "reference" and not build.is_built(build.cached_library())
    with doing("building the C++ kernels, once a machine") if missing else contextlib.nullcontext():
        choose(cluster)
    log("kernels", training=ops.describe())
