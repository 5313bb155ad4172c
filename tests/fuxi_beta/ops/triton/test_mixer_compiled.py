"""The interpreter takes programs that the compiler refuses, so the mixer is compiled too: that needs no GPU."""

import pytest


@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_mixer_compiles_for_matrix_units(capability, compiled):
    rows = compiled("benchmarks.gpu_mixer", "--quick", "--registers", capability)
    for kernel in ("_rows_kernel", "_columns_kernel"):
        found = [row for row in rows if row["kernel"] == kernel]
        assert found
        assert all(row["matrix_units"] for row in found)
        # The order of choices that was compiled is Hopper's; older cards begin with smaller tiles.
        assert capability == "80" or all(row["spilled"] <= 400 for row in found)
    assert not [row for row in rows if row["kernel"] in {"_ungate_kernel", "_lags_kernel"} and row["spilled"]]
