"""Compile the C++ kernels on first use and keep them: `python -m fuxi_beta.ops.cpu.build` does it ahead of time.

A build is kept in the user's cache, in a folder named by a hash of all it depends on: sources, flags, torch, compiler
and the instruction set of this CPU, because `-march=native` code crashes on another. It is compiled and checked in a
separate process and moved into place only if its results are right, so a broken compiler cannot break a run.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
LIBRARY = "fuxi_kernels.so"
CHECKSUM = "sha256"
TIMEOUT_S = 600


class KernelError(RuntimeError):
    """The kernels cannot be built or loaded here; the message is one line."""


def load() -> Path:
    """Make the operators `torch.ops.fuxi_beta.*` available, building them if need be. Raises KernelError."""
    try:
        library = cached_library()
        if not is_built(library):
            _build_in_subprocess(library)
        torch.ops.load_library(str(library))
    except OSError as error:
        raise KernelError(str(error).splitlines()[0]) from error
    return library


def cached_library() -> Path:
    """Path of the library for this machine, whether it is built or not."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "fuxi-beta" / f"kernels-{_fingerprint()}" / LIBRARY


def is_built(library: Path) -> bool:
    """Whether a library exists and is complete: loading a truncated file would kill the process."""
    checksum = library.with_name(CHECKSUM)
    return library.exists() and checksum.exists() and checksum.read_text() == _sha256(library)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _fingerprint() -> str:
    parts = [torch.__version__, platform.machine(), _cpu_flags(), _compiler_version(), *FLAGS]
    parts += [file.read_text() for file in _files(".cpp", ".h")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _files(*suffixes: str) -> list[Path]:
    return sorted(file for file in SOURCES.iterdir() if file.suffix in suffixes)


def _cpu_flags() -> str:
    """The instruction sets of this CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.node()} {platform.processor()}"


def _compiler_version() -> str:
    """First line of the compiler's version text. Raises KernelError if there is no compiler."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise KernelError(f"there is no C++ compiler ({compiler}): install g++")
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=False)
    return (done.stdout or done.stderr).partition("\n")[0]


def _build_in_subprocess(library: Path) -> None:
    library.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _lock(library.parent.with_suffix(".lock")):
        if is_built(library):
            return  # another process has built it meanwhile
        command = [sys.executable, "-m", "fuxi_beta.ops.cpu.build", str(library)]
        # The package may not be installed, only on this process's path.
        python_path = os.pathsep.join([str(SOURCES.parents[2]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        # torch looks for ninja on the PATH, but it may be installed in an environment that is not activated.
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PYTHONPATH": python_path, "PATH": programs, "OMP_NUM_THREADS": "2"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment
            )
        except subprocess.TimeoutExpired as error:
            raise KernelError(f"compiling took more than {TIMEOUT_S} s") from error
        if done.returncode:
            raise KernelError(_reason(done.stdout + done.stderr) or f"the build ended with {done.returncode}")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """An exclusive lock for builders on this machine; the operating system frees it when its process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reason(output: str) -> str:
    """The line of a build's output that names the error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line.lower()]
    return (errors or lines or [""])[0 if errors else -1][:300]


def build(library: Path) -> None:
    """Compile, load and check against the reference; only then move the library into place."""
    from torch.utils import cpp_extension

    library.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = Path(tempfile.mkdtemp(dir=library.parent.parent))
    try:
        cpp_extension.load(
            "fuxi_kernels",
            [str(file) for file in _files(".cpp")],
            extra_cflags=list(FLAGS),
            extra_ldflags=["-fopenmp"],
            build_directory=str(scratch),
            is_python_module=False,
        )
        from fuxi_beta.ops.cpu import check

        check.run()
        finished = scratch / "finished"
        finished.mkdir()
        (scratch / LIBRARY).rename(finished / LIBRARY)
        (finished / CHECKSUM).write_text(_sha256(finished / LIBRARY))
        shutil.rmtree(library.parent, ignore_errors=True)  # a damaged one
        finished.rename(library.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if sys.argv[1:] else cached_library())
