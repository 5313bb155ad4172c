"""The interpreter takes programs that the compiler refuses, so the kernels are compiled too: that needs no GPU."""

import pytest


@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_and_keep_to_their_registers(capability, compiled):
    rows = compiled("benchmarks.gpu_registers", "--quick", "--capability", capability)
    assert {row["kernel"] for row in rows} >= {
        "_losses_and_states",
        "_sums_by_row",
        "_score_and_select",
        "_norm_kernel",
        "_norm_backward_kernel",
        "_combine_kernel",
        "_rowwise_adagrad_kernel",
        "_scan_kernel",
        "_waves_kernel",
        "_gate_kernel",
        "_ungate_kernel",
    }
    assert not [row for row in rows if row["spilled"]]
    products = {"_score_and_select", "_scan_kernel", "_waves_kernel"}
    assert all(row["matrix_units"] for row in rows if row["kernel"] in products)
