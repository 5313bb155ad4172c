"""The machine of a measurement, in words."""

import platform
from pathlib import Path


def describe() -> str:
    """The processor, the threads used and the versions that matter."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()} in a host with {name}"
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}, {capability}, torch {torch.__version__}"
