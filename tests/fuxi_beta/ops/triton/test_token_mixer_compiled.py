"""The interpreter takes programs that the compiler refuses, so the mixer is compiled too: that needs no GPU."""

import pytest

SHARED = {"80": 163 * 1024, "86": 99 * 1024, "90": 227 * 1024}
"""Bytes that a program can have, by capability; 8.9 and 12.0 have as few as 8.6."""
SPILLED = {False: 400, True: 600}
"""Bytes of a thread; exppow keeps a second logarithm of each pair."""


@pytest.mark.parametrize("capability", SHARED)
def test_the_mixer_compiles_for_matrix_units_and_fits(capability, compiled):
    rows = compiled("benchmarks.gpu_mixer", "--quick", "--registers", capability)
    for kernel in ("_rows_kernel", "_columns_kernel"):
        found = [row for row in rows if row["kernel"] == kernel]
        assert found and any("exppow" in row["case"] for row in found)
        assert all(row["matrix_units"] for row in found)
        assert all(row["spilled"] <= SPILLED["exppow" in row["case"]] for row in found)
        assert all(row["shared"] <= SHARED[capability] for row in found)
    assert not [row for row in rows if row["kernel"] in {"_ungate_kernel", "_lags_kernel"} and row["spilled"]]
