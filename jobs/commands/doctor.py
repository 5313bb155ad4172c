"""`fuxi doctor`: whether this machine has everything that a day needs, in versions that work together."""

import contextlib
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.runtime import account, java, scratch
from jobs.runtime.screen import screen
from pipelines import storage
from pipelines.errors import InputError

TRIPLES = (
    {"torch": "2.13", "torchrec": "1.8", "fbgemm_gpu": "1.8"},  # of the locks
    {"torch": "2.14", "torchrec": "1.9", "fbgemm_gpu": "1.9"},
)
"""Versions that work together: fbgemm loads with one version of torch only."""
FREE_DISK_GB = 5


@dataclass(frozen=True)
class Finding:
    """The result of one check. `remedy` is empty when all is well."""

    name: str
    found: str
    remedy: str = ""
    required: bool = True  # without it no day can run on this machine


def examine(workspace: str) -> list[Finding]:
    """Run every check. No engine is started, and no file is left behind."""
    return [
        check_python(),
        check_java(),
        check_triple(),
        check_gpu(),
        check_kernels(),
        check_user(),
        check_home(),
        check_temporary_files(),
        check_workspace(workspace),
    ]


def check_python() -> Finding:
    """Python 3.11 to 3.13."""
    found = f"{platform.python_version()} at {sys.executable}"
    remedy = "install Python 3.11, 3.12 or 3.13 and run `make setup PYTHON=python3.11`"
    return Finding("Python", found, "" if sys.version_info[:2] in ((3, 11), (3, 12), (3, 13)) else remedy)


def check_java() -> Finding:
    """Java 17 or 21, which Spark needs."""
    found, fits = java.look()
    return Finding("Java", found, "" if fits else java.REMEDY)


def check_triple() -> Finding:
    """torch, torchrec and fbgemm in versions that work together."""
    names = {"torch": ("torch",), "torchrec": ("torchrec",), "fbgemm_gpu": ("fbgemm-gpu-cpu", "fbgemm-gpu")}
    found = {module: _installed(packages) for module, packages in names.items()}
    wanted = " or ".join(", ".join(f"{module} {version}" for module, version in triple.items()) for triple in TRIPLES)
    text = ", ".join(f"{module} {version or 'missing'}" for module, version in found.items())
    remedy = f"wanted {wanted}: run `make setup` (it installs requirements/ with --no-deps)"
    if not any(_is_of(found, triple) for triple in TRIPLES):
        return Finding("torch triple", text, remedy)
    if all(_installed((package,)) for package in names["fbgemm_gpu"]):
        return Finding("torch triple", f"{text}; fbgemm-gpu and fbgemm-gpu-cpu overwrite each other", remedy)
    try:
        importlib.import_module("fbgemm_gpu")
    except (ImportError, OSError) as error:
        return Finding("torch triple", f"{text}; fbgemm_gpu does not load: {str(error).splitlines()[0]}", remedy)
    return Finding("torch triple", text)


def _is_of(found: Mapping[str, str | None], triple: Mapping[str, str]) -> bool:
    return all((found[module] or "").startswith(f"{version}.") for module, version in triple.items())


def _installed(packages: tuple[str, ...]) -> str | None:
    """The version of the first of these packages that is installed."""
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return None


def check_gpu() -> Finding:
    """CUDA devices and their kernels; none is fine."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return Finding("GPU", f"torch does not import: {error}", "run `make setup`", required=False)
    if not torch.cuda.is_available():
        return Finding("GPU", f"none; training uses {os.cpu_count()} CPU cores")
    names = ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
    try:
        from fuxi_beta.ops import triton

        failure = triton.why_not()
    except ImportError as error:
        failure = str(error)
    if failure:
        return Finding("GPU", f"{names}; plain torch: {failure}", "install requirements/cuda.txt", required=False)
    return Finding("GPU", f"{names}; kernels by {triton.describe()}")


def check_kernels() -> Finding:
    """Whether the C++ kernels are built or can be; without them training is several times slower."""
    try:
        from fuxi_beta import ops
        from fuxi_beta.ops.cpu import build

        library = build.cached_library()
        if not build.is_built(library):
            return Finding("CPU kernels", "not built yet: the first training does it, in about 20 s")
    except (ImportError, build.KernelError) as error:
        return Finding("CPU kernels", str(error), "install g++ for training several times faster", required=False)
    failure = ops.why_no_cpu_kernels()
    if failure:
        return Finding("CPU kernels", failure, f"remove {library.parent} to build anew", required=False)
    return Finding("CPU kernels", f"{ops.describe()} at {library.parent}")


def check_user() -> Finding:
    """The user id has a name, and the locale is UTF-8; commands do without either."""
    found = account.as_found()
    encoding = f"{sys.getfilesystemencoding()}, umask {account.umask():03o}"
    if found.name:
        return Finding("user", f"{found.name}, {encoding}")
    remedy = (
        f"commands go by this name; for spark-submit and others add the id to /etc/passwd (the image's entry point "
        f"gives it a name), for example {account.substitute_name()}:x:{os.getuid()}:{os.getgid()}::/tmp:/bin/false"
    )
    text = f"{os.getuid()} has no name, called {account.substitute_name()}, {encoding}"
    return Finding("user", text, remedy, required=False)


def check_home() -> Finding:
    """The home can be written, where libraries and the kernels keep their caches; another folder does as well."""
    found = account.as_found()
    caches = os.environ.get("XDG_CACHE_HOME") or found.caches or f"{found.home}/.cache"
    if found.writable and not found.caches:
        return Finding("home", f"{found.home}, caches in {caches}")
    home = f"{found.home} cannot be written" if found.home else "there is none"
    remedy = "set XDG_CACHE_HOME to a folder that stays, or the kernels are built anew when that one goes"
    return Finding("home", f"{home}, caches in {caches}", "" if not found.caches else remedy, required=False)


def check_temporary_files() -> Finding:
    """TMPDIR can be written, and its name is not too long for the sockets of Ray."""
    try:
        scratch.check_sockets()
        return Finding("temporary", scratch.described())
    except (InputError, OSError) as error:
        found, _, remedy = str(error).rpartition(": ")
        return Finding("temporary", found, remedy)


def check_workspace(uri: str) -> Finding:
    """The workspace can be written, read and deleted from, and its disk has room."""
    remedy = "choose another place with --workspace, or fix its permissions or credentials"
    try:
        uri = storage.absolute(uri)
        probe = storage.join(uri, f"_doctor-{uuid.uuid4().hex}")
        storage.write_bytes(probe, b"probe")
        storage.read_bytes(probe)
        storage.delete_files([probe])
    except (InputError, OSError) as error:
        return Finding("workspace", f"{uri}: {error}", remedy)
    if storage.is_s3(uri):
        return Finding("workspace", f"{uri}, writable")
    free = shutil.disk_usage(uri).free / 1e9
    if free >= FREE_DISK_GB:
        return Finding("workspace", f"{uri}, writable, {free:.0f} GB free")
    return Finding("workspace", f"{uri}, {free:.1f} GB free", f"free {FREE_DISK_GB} GB or choose another --workspace")


def render(findings: list[Finding]) -> bool:
    """Print a line for each check. Returns whether all required checks passed."""
    shown = screen()
    for finding in findings:
        sign = "ok" if not finding.remedy else "FAIL" if finding.required else "warn"
        shown.say(f"{sign:<4}  {finding.name:<13} {finding.found}", indent=20)
        if finding.remedy:
            shown.say(f"      {finding.remedy}", indent=6)
    return not any(finding.remedy and finding.required for finding in findings)
