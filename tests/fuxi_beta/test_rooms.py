"""Rooms of `fuxi_beta` import one way and modules in no circle. Read off the source, so that lazy imports count too."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fuxi_beta"
ORDER = (
    {"config"},
    {"presets", "data"},
    {"recommender", "ops"},
    {"layers", "baselines"},
    {"models"},
    {"training"},
    {"evaluation"},
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(file): file for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE or file.stem != "__init__"
}


def imports(file: Path) -> set[str]:
    """The modules of the package that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            every = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in every}
    return {name for name in names if name in MODULES}


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_room_imports_only_rooms_below_it(module: str) -> None:
    above = [m for m in imports(MODULES[module]) if room(m) != room(module) and RANK[room(m)] >= RANK[room(module)]]
    assert not above


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {module: imports(file) - {module} for module, file in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)
