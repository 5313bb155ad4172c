"""Data flows one way: pipelines -> fuxi_beta -> jobs. Read off the source, so that lazy imports count too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = {
    "pipelines.errors",
    "pipelines.schema",
    "pipelines.histories.histories",
    "pipelines.histories.shards",
    "pipelines.imports.plays",
    "pipelines.storage",
    "pipelines.calendar",
}
ENGINES = {"pyspark", "ray", "mlflow", "deltalake"}


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


@pytest.mark.parametrize("file", sources("pipelines"), ids=lambda file: file.stem)
def test_pipelines_import_neither_other_package_nor_torch(file: Path) -> None:
    modules = imported_modules(file)
    assert not [m for m in modules if inside(m, "fuxi_beta") or inside(m, "jobs") or inside(m, "torch")]


@pytest.mark.parametrize("file", sources("fuxi_beta"), ids=lambda file: file.stem)
def test_fuxi_beta_imports_only_the_shared_rooms_of_pipelines_and_no_engine(file: Path) -> None:
    modules = imported_modules(file)
    foreign = [m for m in modules if inside(m, "jobs") or any(inside(m, engine) for engine in ENGINES)]
    unshared = [m for m in modules if m.startswith("pipelines.") and not any(inside(m, s) for s in SHARED)]
    assert not foreign + unshared


@pytest.mark.parametrize("file", sources("fuxi_beta"), ids=lambda file: file.stem)
def test_torchrec_is_imported_by_the_embedding_alone(file: Path) -> None:
    uses = [m for m in imported_modules(file) if inside(m, "torchrec") or inside(m, "fbgemm_gpu")]
    assert not uses or file.name == "embedding.py"
