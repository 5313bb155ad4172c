"""Every link, anchor, path and dotted name in the Markdown files leads to something that is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipelines", "fuxi_beta", "jobs", "benchmarks")
FOLDERS = (*PACKAGES, "tests", "docs", "infra", "requirements", "examples")
PAGES = sorted([*ROOT.glob("*.md"), *(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))])
HISTORY = ROOT / "CHANGELOG.md"
"""It names what was there in earlier versions."""


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


pages = pytest.mark.parametrize("page", PAGES, ids=named)


def prose(text: str) -> str:
    """The text without code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "code", text)


def links(text: str) -> list[str]:
    """Targets of links and images that are files of ours: no URLs."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return [target for target in found if "://" not in target and not target.startswith("mailto:")]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    slugs: list[str] = []
    for title in re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
        slugs.append(f"{slug}-{slugs.count(slug)}" if slug in slugs else slug)
    return set(slugs)


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and (file.suffix != ".md" or anchor not in anchors(file))):
            broken.append(target)
    return broken


def missing_paths(text: str) -> list[str]:
    """Paths from the root of the repository that are not there; patterns, placeholders and example files left out."""
    found = re.findall(rf"(?<![\w/.=:-])((?:{'|'.join(FOLDERS)})/[\w./*{{}}<>-]*)", text)
    examples = re.findall(r"For example,?\s+`([^`]+)`", text)
    paths = {path.rstrip(".-") for path in found if not re.search(r"[*{}<>]|\b[A-Z]{2,}\b", path)}
    return sorted(path for path in paths - set(examples) if not (ROOT / path).exists())


@cache
def names_of(file: Path) -> set[str]:
    """What a module defines or imports at its top level."""
    found: set[str] = set()
    pending: list[ast.AST] = list(ast.parse(file.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If):
            pending += node.body
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def is_there(dotted: str) -> bool:
    """Whether `package.module` or `package.module.name` exists; what follows the name is not looked at."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if file.is_file() or place.is_dir():
            rest = parts[length:]
            return not rest or (file.is_file() and rest[0] in names_of(file))
    return False


def missing_names(text: str) -> list[str]:
    found = re.findall(rf"(?<![\w/.-])((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)", text)
    return sorted({name for name in found if not name.endswith((".py", ".NAME")) and not is_there(name)})


@pages
def test_every_link_leads_to_a_file_and_a_heading_that_is_there(page: Path) -> None:
    assert not broken_links(page, page.read_text())


@pytest.mark.parametrize("page", [page for page in PAGES if page != HISTORY], ids=named)
def test_every_path_and_every_dotted_name_is_there(page: Path) -> None:
    text = page.read_text()
    assert not missing_paths(text)
    assert not missing_names(text)


def test_contributing_lists_the_rooms_in_the_order_that_imports_are_held_to() -> None:
    held = re.search(r"^ROOMS = (\{.*?^\})", (ROOT / "tests" / "test_imports.py").read_text(), re.M | re.S)
    assert held
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (`.*`) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    listed = {package: re.findall(r"`(\w+)/?`", rooms) for package, rooms in rows if package in PACKAGES}
    order = {package: rooms.split() for package, rooms in ast.literal_eval(held[1]).items()}
    assert listed == {package: [room for room in rooms if room != "__init__"] for package, rooms in order.items()}


def test_every_page_of_the_documentation_can_be_reached_from_its_index() -> None:
    seen, pending = set[Path](), [ROOT / "docs" / "README.md"]
    while pending:
        page = pending.pop()
        if page not in seen and page.suffix == ".md" and page.exists():
            seen.add(page)
            pending += [(page.parent / target.partition("#")[0]).resolve() for target in links(page.read_text())]
    assert not [named(page) for page in (ROOT / "docs").rglob("*.md") if page not in seen]


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = "# One `x.y`, two\n[a](page.md#one-xy-two) [b](page.md#three) [c](none.md) `[d](e.md)` [f](https://g)\n"
    page.write_text(text)
    assert broken_links(page, text) == ["page.md#three", "none.md"]
    assert missing_paths("See `jobs/day.py`, jobs/gone.py, `jobs/NAME.py` and tests/*/x.py.") == ["jobs/gone.py"]
    assert missing_paths("For example `jobs/mine.py`: then jobs/mine.py and ../jobs/gone.py.") == []
    names = "jobs.day.Day, jobs.day.Night, `pipelines.gone`, `fuxi_beta.ops`, jobs.day.Day.record, benchmarks.py"
    assert missing_names(names) == ["jobs.day.Night", "pipelines.gone"]
