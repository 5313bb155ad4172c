"""Without a GPU the kernels run in Triton's interpreter, which must be said before Triton is imported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).parents[4]


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
