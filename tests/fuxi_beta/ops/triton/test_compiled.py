"""The interpreter takes programs that the compiler refuses, so the kernels are compiled too: that needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_and_keep_to_their_registers(capability, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_registers", "--quick", "--capability", capability],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert {row["kernel"] for row in rows} >= {"_losses_and_states", "_sums_by_row", "_score_and_select"}
    assert not [row for row in rows if row["spilled"]]
    assert all(row["matrix_units"] for row in rows if row["kernel"] == "_score_and_select")
