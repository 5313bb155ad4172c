"""`fuxi doctor`: is everything here that a day needs, in versions that work together?"""

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from pipelines import storage
from pipelines.errors import InputError

JAVA_MAJORS = (17, 21)
TRIPLE = {"torch": "2.13", "torchrec": "1.8", "fbgemm_gpu": "1.8"}
FREE_DISK_GB = 5


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table. `remedy` is empty when all is well."""

    name: str
    found: str
    remedy: str = ""
    required: bool = True

    @property
    def failed(self) -> bool:
        """Whether a day cannot run like this."""
        return bool(self.remedy) and self.required


def examine(workspace: str) -> list[Check]:
    """Run every check. Nothing is started and nothing stays behind."""
    checks: tuple[Callable[[], Check], ...] = (check_python, check_java, check_triple, check_gpu, check_kernels)
    return [check() for check in checks] + [check_workspace(workspace)]


def check_python() -> Check:
    """Python 3.11 or 3.12."""
    found = f"{platform.python_version()} at {sys.executable}"
    good = sys.version_info[:2] in ((3, 11), (3, 12))
    return Check("Python", found, "" if good else "install Python 3.11 or 3.12 and run `make setup PYTHON=python3.11`")


def check_java() -> Check:
    """Java 17 or 21, which Spark needs."""
    packages = "openjdk-17-jre-headless (Debian, Ubuntu), java-17-openjdk (Fedora) or openjdk@17 (Homebrew)"
    remedy = f"Spark needs Java 17 or 21: install {packages}"
    home = os.environ.get("JAVA_HOME")
    program = f"{home}/bin/java" if home else shutil.which("java")
    if not program or not shutil.which(program):
        return Check("Java", f"none at JAVA_HOME={home}" if home else "none on the PATH", remedy)
    output = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=60, check=False).stderr
    match = re.search(r'version "(\d+)(?:\.(\d+))?', output)
    major = int(match[2] if match and match[1] == "1" else match[1]) if match else 0
    found = f"{major or 'unknown version'} at {program}"
    return Check("Java", found, "" if major in JAVA_MAJORS else remedy)


def check_triple() -> Check:
    """torch, torchrec and fbgemm in versions that load each other."""
    names = {"torch": ("torch",), "torchrec": ("torchrec",), "fbgemm_gpu": ("fbgemm-gpu-cpu", "fbgemm-gpu")}
    found = {module: _installed(packages) for module, packages in names.items()}
    wanted = ", ".join(f"{module} {version}" for module, version in TRIPLE.items())
    text = ", ".join(f"{module} {version or 'missing'}" for module, version in found.items())
    remedy = f"wanted {wanted}: run `make setup` (it installs requirements/ with --no-deps)"
    if any(not (found[module] or "").startswith(f"{version}.") for module, version in TRIPLE.items()):
        return Check("torch triple", text, remedy)
    if all(_installed((package,)) for package in names["fbgemm_gpu"]):
        return Check("torch triple", f"{text}; fbgemm-gpu and fbgemm-gpu-cpu overwrite each other", remedy)
    try:
        importlib.import_module("fbgemm_gpu")
    except (ImportError, OSError) as error:
        return Check("torch triple", f"{text}; fbgemm_gpu does not load: {str(error).splitlines()[0]}", remedy)
    return Check("torch triple", text)


def _installed(packages: tuple[str, ...]) -> str | None:
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_gpu() -> Check:
    """CUDA devices and their kernels; none is fine."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return Check("GPU", f"torch does not import: {error}", "run `make setup`", required=False)
    if not torch.cuda.is_available():
        return Check("GPU", f"none; training uses {os.cpu_count()} CPU cores")
    names = ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
    try:
        from fuxi_beta.ops import triton

        failure = triton.why_not()
    except ImportError as error:
        failure = str(error)
    if failure:
        return Check("GPU", f"{names}; plain torch: {failure}", "install requirements/cuda.txt", required=False)
    return Check("GPU", f"{names}; kernels by {triton.describe()}")


def check_kernels() -> Check:
    """Whether the C++ kernels are there or can be built; without them training is several times slower."""
    try:
        from fuxi_beta import ops
        from fuxi_beta.ops.cpu import build

        library = build.cached_library()
        if not build.is_built(library):
            return Check("CPU kernels", "not built yet: the first training does it, in about 20 s")
    except (ImportError, build.KernelError) as error:
        return Check("CPU kernels", str(error), "install g++ for training several times faster", required=False)
    failure = ops.why_no_cpu_kernels()
    if failure:
        return Check("CPU kernels", failure, f"remove {library.parent} to build anew", required=False)
    return Check("CPU kernels", f"{ops.describe()} at {library.parent}")


def check_workspace(uri: str) -> Check:
    """The workspace can be written, read and cleaned, and its disk has room."""
    remedy = "choose another place with --workspace, or fix its permissions or credentials"
    try:
        uri = storage.absolute(uri)
        probe = storage.join(uri, f"_doctor-{uuid.uuid4().hex}")
        storage.write_bytes(probe, b"probe")
        storage.read_bytes(probe)
        fs, path = storage.filesystem(probe)
        fs.delete_file(path)
    except (InputError, OSError) as error:
        return Check("workspace", f"{uri}: {error}", remedy)
    if storage.is_s3(uri):
        return Check("workspace", f"{uri}, writable")
    free = shutil.disk_usage(uri).free / 1e9
    if free < FREE_DISK_GB:
        return Check("workspace", f"{uri}, {free:.1f} GB free", f"free {FREE_DISK_GB} GB or choose another --workspace")
    return Check("workspace", f"{uri}, writable, {free:.0f} GB free")


def render(checks: list[Check]) -> bool:
    """Print the table, one line a check. Returns whether all required checks passed."""
    for check in checks:
        sign = "ok  " if not check.remedy else "FAIL" if check.required else "warn"
        print(f"{sign}  {check.name:<13} {check.found}" + (f"\n      {check.remedy}" if check.remedy else ""))
    return not any(check.failed for check in checks)
