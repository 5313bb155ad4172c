"""A bit flips in every file of a workspace: `fuxi verify` names each, and what rebuilds it."""

import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs.cli import cli
from jobs.commands import verify
from pipelines import storage
from pipelines.histories.shards import read_manifest
from tests.log_lines import said

DAY_TWO = "2026-01-27"
NO_DIGEST = re.compile(
    r"mlflow\.db|.*\.lock|.*/registered_model_meta|runs/[^/]+/(train_progress\.json|checkpoints/[^/]+/[^/]+)"
)
"""The registry's database (docs/workspace.md), and what no command reads: MLflow writes the last at every download."""


@pytest.fixture(scope="module")
def copied(two_days: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bits") / "workspace"
    shutil.copytree(two_days.root, root)
    shutil.rmtree(root / "logs")
    return root


def flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def files_of(root: Path) -> list[Path]:
    files = [file for file in sorted(root.rglob("*")) if file.is_file() and file.stat().st_size]
    return [file for file in files if not NO_DIGEST.fullmatch(file.relative_to(root).as_posix())]


def test_a_workspace_as_it_was_written_has_no_damage(copied: Path) -> None:
    found = verify.run(str(copied))
    assert not found.damaged and found.files > 200
    assert set(found.unknown) <= {"mlflow.db", "mlartifacts", "runs"} and sum(found.unknown.values()) < 40


@pytest.mark.parametrize("seed", [1, 2])
def test_a_flipped_bit_in_every_file_is_named_with_a_remedy(copied: Path, tmp_path: Path, seed: int) -> None:
    """First in the files that have digests of others or of themselves, then in all the rest."""
    rng = random.Random(seed)
    for own in (True, False):
        root = tmp_path / f"{own}"
        shutil.copytree(copied, root)
        files = [file for file in files_of(root) if (storage.JSON_DIGEST.encode() in file.read_bytes()[-90:]) == own]
        files.remove(root / "_workspace.json") if own else None
        assert len(files) > 20
        before = {file: storage.read_json(str(file)) for file in files if own}
        for file in files:
            flip(file, rng)
        lines = verify.run(str(root)).damaged
        unnamed = [file for file in files if not any(f"{file} " in line for line in lines)]
        assert [file for file in unnamed if not own or storage.read_json(str(file)) != before[file]] == []
        assert all(re.search("restore|fuxi|run |again|remove", line) for line in lines)


def test_the_command_names_damage_in_one_line_and_ends_with_2(copied: Path, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    shutil.copytree(copied, root)
    whole = CliRunner().invoke(cli, ["verify", str(root), "--ds", DAY_TWO])
    assert whole.exit_code == 0 and " 0 damaged" in whole.output
    manifest = read_manifest(str(root / "sequences" / f"ds={DAY_TWO}"))
    shard = Path(manifest.uri_of(manifest.files[0]))  # of the day before
    flip(shard, random.Random(1))
    broken = CliRunner().invoke(cli, ["verify", str(root), "--ds", DAY_TWO])
    [line] = said("\n".join(line for line in broken.output.splitlines() if line.startswith("{")))
    assert broken.exit_code == 2 and f"{shard} does not match its SHA-256: " in line
    assert "fuxi sessionize --ds 2026-01-26 --force" in line
    shard.unlink()
    assert "is not there" in verify.run(str(root)).damaged[0]
    (root / "_workspace.json").write_text("{")
    [line] = verify.run(str(root)).damaged
    assert "_workspace.json is not valid JSON" in line
