"""Runs a script as on a host that has few packages: `python bare_host.py PACKAGE,PACKAGE,... SCRIPT ARGUMENT ...`.

Whatever else is installed here cannot be imported, nor found by `importlib.util.find_spec`. The last line it prints is
a JSON object: the installed packages that the script imported, and those that it, or what it imported, looked for in
vain.
"""

import json
import runpy
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

INSTALLED = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}


class FewPackages:
    """The finders of modules that were there, but for what is installed and not among `packages`."""

    def __init__(self, packages: set[str]) -> None:
        self.packages, self.finders = packages, list(sys.meta_path)
        self.refused: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As of importlib.abc.MetaPathFinder."""
        specs = (finder.find_spec(name, path, target) for finder in self.finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and path is None and installed(spec) and name not in self.packages:
            self.refused.add(name)
            return None
        return spec

    def find_distributions(self, *context: Any) -> Iterator[Any]:
        """As of importlib.metadata.DistributionFinder."""
        for finder in self.finders:
            if hasattr(finder, "find_distributions"):
                yield from finder.find_distributions(*context)  # type: ignore[attr-defined]


def installed(spec: ModuleSpec | None) -> bool:
    """Whether a top-level module lies where pip puts packages."""
    if spec is None:
        return False
    places = [spec.origin, *(spec.submodule_search_locations or [])]
    return any(folder in Path(place).resolve().parents for place in places if place for folder in INSTALLED)


def main(packages: str, script: str, *arguments: str) -> None:
    """Run the script, then say what it imported."""
    before = set(sys.modules)
    finder = FewPackages(set(packages.split(",")))
    sys.meta_path[:] = [finder]
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    names = {name for name in sys.modules.keys() - before if "." not in name}
    imported = sorted(name for name in names if installed(getattr(sys.modules[name], "__spec__", None)))
    print(json.dumps({"imported": imported, "refused": sorted(finder.refused)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
