"""The account that a command runs under, where it is not one of a person: in containers, on clusters, from cron.

There a user id may have no name, the home may be missing or read-only, and the locale may be one without UTF-8.
Libraries look all of these up for themselves; so they are told by the environment, which what a command starts (Spark,
Ray, MLflow, torch) inherits.
"""

import locale
import os
import pwd
import stat
import sys
import tempfile
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

_CACHES = {
    "XDG_CACHE_HOME": "",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
}
"""Variables of libraries that keep something in the home, and the folder of each among the caches."""


_found: list["Account"] = []
"""The account before it was settled."""


@dataclass(frozen=True)
class Account:
    """The account as it was found."""

    name: str  # "": the user id has none
    home: str  # "": there is none
    writable: bool  # home
    caches: str  # folder in place of ~/.cache, "": that is used, or there is no other


def name_of_user() -> str:
    """The name of this process's user id, "" if it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def substitute_name() -> str:
    """What a user id without a name is called."""
    return f"uid-{os.getuid()}"


def umask() -> int:
    """The rights that new files lack."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def as_found() -> Account:
    """The account as it was before this process settled in it."""
    return _found[0] if _found else examine()


def examine(environment: MutableMapping[str, str] = os.environ) -> Account:
    """The account as libraries would find it."""
    name = name_of_user()
    home = environment.get("HOME") or (pwd.getpwuid(os.getuid()).pw_dir if name else "")
    home = home if Path(home).is_dir() and home not in ("", "/") else ""
    writable = bool(home) and os.access(home, os.W_OK | os.X_OK)
    given = environment.get("XDG_CACHE_HOME", "")
    usable = _can_be_made(Path(given)) if given else writable and _can_be_made(Path(home, ".cache"))
    return Account(name, home, writable, "" if usable else _cache_folder())


def settle(environment: MutableMapping[str, str] = os.environ) -> Account:
    """Let this process, and what it starts, find a name, a home and folders for caches. What is set stays.

    Caches that cannot be in the home are in a folder of the user's below the machine's temporary files, which stays
    when the command ends. A home that exists stays the home, also where it is read-only: it may hold credentials.
    """
    found = examine(environment)
    _found[:] = [found]
    if not found.name and not any(environment.get(name) for name in ("LOGNAME", "USER")):
        environment["LOGNAME"] = environment["USER"] = substitute_name()
    java = []  # it reads neither HOME nor USER: without a name its home would be "?"
    if not found.name:
        java.append(f"-Duser.name={substitute_name()}")
    if not found.name or not found.writable:
        java.append(f'-Duser.home="{found.caches or found.home}"')
    if java:
        environment["SPARK_SUBMIT_OPTS"] = " ".join([environment.get("SPARK_SUBMIT_OPTS", ""), *java]).strip()
    if found.caches:
        for name, folder in _CACHES.items():
            if name == "XDG_CACHE_HOME":
                environment[name] = found.caches
            else:
                environment.setdefault(name, str(Path(found.caches, folder)))
        if not found.home:
            environment["HOME"] = found.caches
    return found


def speak_utf8() -> None:
    """Begin again, once, in UTF-8 where the locale is another: file names, pages and the terminal are UTF-8 here."""
    encoding = locale.getencoding().lower().replace("-", "")
    if encoding != "utf8" and not os.environ.get("LC_ALL", "").startswith("C.") and os.environ.get("PYTHONUTF8") != "1":
        os.environ["LC_ALL"], os.environ["PYTHONUTF8"] = "C.UTF-8", "1"
        os.environ.pop("PYTHONIOENCODING", None)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _can_be_made(folder: Path) -> bool:
    """Whether a folder is there and writable, or could be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _cache_folder() -> str:
    """A folder of this user's alone, because libraries are loaded from it; one of a guessable name may be a trap."""
    try:
        folder = Path(tempfile.gettempdir()).absolute() / f"fuxi-cache-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return str(folder)
        return tempfile.mkdtemp(prefix="fuxi-cache-")
    except OSError:  # nothing can be written here at all
        return ""
