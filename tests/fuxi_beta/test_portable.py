"""From shards to lists on a host with the few packages that docs/gpu.md names, whatever else is installed here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

HERE = Path(__file__).parent
PACKAGES = {"torch", "triton", "pyarrow", "numpy", "safetensors", "typing_extensions"}
OF_TORCH = {"torchgen", "sympy", "mpmath"}  # a part of its wheel, and what it cannot start without
USED_IF_THERE = {"cloudpickle", "hypothesis", "networkx", "pandas", "sklearn", "tqdm"}  # by torch and pyarrow
TORCHREC = ["torchrec", "fbgemm_gpu", "torchmetrics"]
ENGINES = ["ray", "mlflow", "pyspark", "deltalake", "boto3", "duckdb", "polars"]
K, SONGS, LISTENERS = 5, 40, 24  # of whole_path.py
ROUNDING = 1e-4

LOOK = f"""
import importlib.metadata, importlib.util, json
def imports(name):
    try:
        __import__(name)
    except ModuleNotFoundError:
        return False
    return True
print(json.dumps([name for name in {TORCHREC + ENGINES} if importlib.util.find_spec(name) or imports(name)]))
importlib.metadata.version("triton")
"""


def on_a_bare_host(script: Path, *arguments: str, interpret: bool = False) -> tuple[object, dict[str, set[str]]]:
    """What the script printed as JSON, and the packages it imported and looked for in vain."""
    packages = ",".join(PACKAGES | OF_TORCH)
    done = subprocess.run(
        [sys.executable, str(HERE / "bare_host.py"), packages, str(script), *arguments],
        env=os.environ | {"TRITON_INTERPRET": str(int(interpret)), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, modules = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    return found, {kind: set(names) for kind, names in modules.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple]:
    """The whole path by each implementation; the folder it wrote to comes third."""

    def run(kernels: str) -> tuple:
        folder = tmp_path_factory.mktemp(kernels)
        interpret = kernels == "triton"
        return *on_a_bare_host(HERE / "whole_path.py", str(folder), kernels, interpret=interpret), folder

    return {kernels: run(kernels) for kernels in ("triton", "cpu", "reference")}


def test_a_bare_host_has_neither_torchrec_nor_engines(tmp_path):
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    found, modules = on_a_bare_host(script)
    assert found == [] and not modules["imported"]


@pytest.mark.parametrize("kernels", ["triton", "cpu", "reference"])
def test_the_whole_path_imports_only_what_it_needs(runs, kernels):
    _, modules, _ = runs[kernels]
    assert modules["imported"] <= PACKAGES | OF_TORCH
    assert modules["imported"] >= (PACKAGES if kernels == "triton" else PACKAGES - {"triton"})
    assert modules["refused"] <= USED_IF_THERE


def test_triton_makes_real_lists_without_a_heard_song(runs):
    found, _, folder = runs["triton"]
    assert "interpreter" in found["kernels"]
    assert np.isfinite(found["loss"]) and found["listeners"] > 0
    assert 0 < found["metrics"]["ndcg_5"] <= 1 and found["metrics"]["repeats_5"] == 0
    heard = {}
    for file in folder.glob("ds=*/bucket=*/*.parquet"):
        for row in pq.read_table(file).to_pylist():
            heard[row["user_id"]] = {*row["item_index"], *row["heard_before"]}
    assert sorted(found["users"]) == list(range(LISTENERS)) == sorted(heard)
    for user, items, scores in zip(found["users"], found["items"], found["scores"], strict=True):
        assert len(set(items)) == len(scores) == K and set(items) <= set(range(1, SONGS + 1)) - heard[user]
        assert np.isfinite(scores).all() and scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("other", ["cpu", "reference"])
def test_all_kernels_make_the_same_lists_up_to_rounding(runs, other):
    found, expected = runs["triton"][0], runs[other][0]
    assert found["kernels"] != expected["kernels"]
    assert found["users"] == expected["users"]
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=ROUNDING)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=ROUNDING)
    for mine, theirs, scores in zip(found["items"], expected["items"], expected["scores"], strict=True):
        close = np.abs(np.diff(scores)) < ROUNDING  # neighbours that rounding may swap
        assert mine == theirs or close.any()
    assert found["metrics"].keys() == expected["metrics"].keys()
