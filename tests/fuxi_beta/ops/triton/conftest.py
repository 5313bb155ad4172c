"""Without a GPU the kernels run in Triton's interpreter, which must be said before Triton is imported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).parents[4]
sys.path.append(str(Path(__file__).parent))  # of `as_hardware`


@pytest.fixture(scope="module", autouse=True)
def _as_hardware() -> Iterator[None]:
    """What is interpreted computes as on a GPU."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from as_hardware import as_hardware

    with as_hardware():
        yield


@pytest.fixture
def take_choice(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that has kernels take the n-th of the tiles that there are for a card, or the next that fits.

    Without it the interpreter takes tiles of 16 tokens, which are quicker there.
    """
    from fuxi_beta.ops.triton import tuning

    def take(number: int) -> None:
        def run(_: object, choices: Sequence[Any], call: Callable[[Any], Any]) -> Any:
            first = number % len(choices)
            return tuning._first_that_fits([*choices[first:], *choices[:first]], call)[1]

        monkeypatch.setattr(tuning, "INTERPRETED", False)
        monkeypatch.setattr(tuning, "run", run)

    return take


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs a benchmark that compiles kernels for a card that need not be there; returns the rows of its JSON line."""

    def run(*arguments: str) -> list[dict[str, Any]]:
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])["rows"]

    return run
