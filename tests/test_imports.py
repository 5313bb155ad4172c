"""Imports go one way: between packages, between the rooms of a package, and never in a circle.

Read off the source, so that imports inside of functions count, too.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "pipelines": "errors redact progress calendar schema object_store storage digests leases workspace delta_tables "
    "leftovers spark histories forget logs imports synthetic",
    "fuxi_beta": "config presets data recommender ops layers models baselines training evaluation __init__",
    "jobs": "config places stage_inputs day runtime tables serving registry training status monitoring report "
    "stages retention daily reproduce commands cli",
}
"""The folders and files of each package; each imports those before it alone."""
SHARED = {
    "errors",
    "schema",
    "storage",
    "digests",
    "calendar",
    "histories.buckets",
    "histories.histories",
    "histories.shards",
    "imports.plays",
}
"""What `fuxi_beta` may import of `pipelines`: neither Spark nor Delta is behind it."""
ENGINES = {"pyspark", "ray", "mlflow", "deltalake"}
HOMES = {
    "torchrec": ["fuxi_beta.training.item_table"],
    "fbgemm_gpu": [],  # TorchRec's kernels; the doctor loads them by name
    "pyspark": ["jobs.runtime.engines", "jobs.runtime.starting"],
    "prometheus_client": ["jobs.monitoring.prometheus"],
    "openlineage": ["jobs.monitoring.lineage"],
    "deltalake": ["jobs.tables.recommendations", "pipelines.delta_tables"],
}
"""Packages that are imported in these modules alone."""


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def imported_modules(file: Path) -> set[str]:
    """Every module a file imports, at any depth, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def sources(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no source below {package}"
    return files


ALL = [file for package in ROOMS for file in sources(package)]


def test_packages_import_one_way() -> None:
    foreign = {"pipelines": {"fuxi_beta", "jobs", "torch"}, "fuxi_beta": {"jobs", *ENGINES}, "jobs": set()}
    wrong = [
        (module_of(file), module)
        for file in ALL
        for module in imported_modules(file)
        if any(inside(module, other) for other in foreign[module_of(file).split(".")[0]])
    ]
    assert not wrong


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_at_home_alone(library: str) -> None:
    homes = [module_of(file) for file in ALL if any(inside(module, library) for module in imported_modules(file))]
    assert sorted(homes) == HOMES[library]


def test_fuxi_beta_imports_only_the_shared_rooms_of_pipelines() -> None:
    unshared = {
        (module_of(file), module)
        for file in sources("fuxi_beta")
        for module in imported_modules(file)
        if module.startswith("pipelines.") and not any(inside(module, f"pipelines.{room}") for room in SHARED)
        if not any(inside(f"pipelines.{room}", module) for room in SHARED)  # `from pipelines.histories import shards`
    }
    assert not unshared


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_rooms_before_it(package: str) -> None:
    rooms = ROOMS[package].split()
    wrong = []
    for file in sources(package):
        room = module_of(file).split(".")[1]
        if room == "__init__" and package != "fuxi_beta":
            continue
        used = {m.split(".")[1] for m in imported_modules(file) if m.startswith(f"{package}.")} & set(rooms)
        wrong += [(module_of(file), other) for other in used if rooms.index(other) > rooms.index(room)]
    assert not wrong
    here = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert here - {"__init__"} == set(rooms) - {"__init__"}, "a new room has no place yet in ROOMS"


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {module_of(file).removesuffix(".__init__"): file for file in ALL}
    graph = {}
    for name, file in names.items():
        used = (imported_modules(file) & names.keys()) - {name}  # of `from package import module`, the module
        graph[name] = {module for module in used if not any(other.startswith(f"{module}.") for other in used)}
    assert len(list(TopologicalSorter(graph).static_order())) == len(names)  # CycleError names the circle
