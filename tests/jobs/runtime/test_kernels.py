"""The configuration's choice of kernels, and what a machine without a compiler is told."""

import pytest

from fuxi_beta import ops
from fuxi_beta.ops import dispatch
from fuxi_beta.ops.cpu import build
from jobs.commands.doctor import check_kernels
from jobs.config import ClusterConfig
from jobs.runtime import kernels
from pipelines.errors import InputError


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch):
    """A machine where the C++ kernels cannot be built."""
    monkeypatch.setattr(dispatch, "_cpu_failure", "there is no C++ compiler (c++): install g++")
    monkeypatch.setenv("CXX", "no-such-compiler")
    build._fingerprint.cache_clear()
    yield
    build._fingerprint.cache_clear()
    ops.use("auto")


def test_kernels_that_cannot_be_had_are_refused_in_one_line(no_compiler: None) -> None:
    with pytest.raises(
        InputError, match=r"cluster\.kernels is 'cpu': .*install g\+\+.*cluster\.kernels=auto"
    ) as caught:
        kernels.choose(ClusterConfig.model_validate({"kernels": "cpu"}))
    assert "\n" not in str(caught.value)


def test_without_a_compiler_training_goes_on_in_plain_torch(
    no_compiler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels.prepare_for_training(ClusterConfig.model_validate({}))
    assert "plain torch: there is no C++ compiler" in capsys.readouterr().err


def test_the_doctor_warns_of_a_missing_compiler_and_fails_nothing(no_compiler: None) -> None:
    check = check_kernels()
    assert not check.required
    assert "no C++ compiler" in check.found
    assert "g++" in check.remedy


def test_plain_torch_can_be_forced_by_the_configuration() -> None:
    try:
        kernels.choose(ClusterConfig.model_validate({"kernels": "reference"}))
        assert "forced" in ops.describe()
    finally:
        ops.use("auto")
