"""The interpreter takes programs that the compiler refuses, so the mixer is compiled too: that needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_mixer_compiles_for_matrix_units(capability, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_mixer", "--quick", "--registers", capability],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    for kernel in ("_rows_kernel", "_columns_kernel"):
        found = [row for row in rows if row["kernel"] == kernel]
        assert found
        assert all(row["matrix_units"] for row in found)
        # The order of choices that was compiled is Hopper's; older cards begin with smaller tiles.
        assert capability == "80" or all(row["spilled"] <= 400 for row in found)
    assert not [row for row in rows if row["kernel"] in {"_ungate_kernel", "_lags_kernel"} and row["spilled"]]
