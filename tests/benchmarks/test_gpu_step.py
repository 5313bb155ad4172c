"""GPU benchmarks on a machine without a GPU: their arithmetic by hand, and a small run of each on the CPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu_step
from benchmarks.gpu_step import (
    Case,
    Contestant,
    StepRow,
    contestants,
    reader_of,
    softmax_to_fuse,
    some_batches,
    toeplitz_to_fuse,
)
from benchmarks.lib import gpu, gpu_trace
from benchmarks.lib.industrial_shards import NOW, Scale, histories_of, lengths, write_shards
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.ops import reference

HERE = Path(__file__).parent
SCALE = Scale(listeners=320, songs=200, mean=8, longest=21, row_group_events=100)
MODEL = ModelConfig(dim=16, layers=2, heads=2, ffn_multiply=2, max_history=20, dropout=0.2)
TRAIN = TrainConfig(mode="all", negatives=8, batch_tokens=500)
FEW = TrainConfig(mode="all", negatives=8, batch_size=16)  # in two groups of like length: little to compile
CASE = Case("tiny", TRAIN, MODEL, device="cpu", kernels="auto", backend="eager", steps=2, rounds=1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), SCALE)


@pytest.fixture(autouse=True)
def whole_graphs():
    """Fail a test that breaks a graph, or recompiles so often that the compiler falls back to eager silently."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    assert not counters["graph_break"]


def test_lengths_have_the_given_mean_and_a_long_tail_that_is_cut():
    found = lengths(50_000, Scale(1), np.random.default_rng(0))
    assert found.mean() == pytest.approx(53, rel=0.01)
    assert found.min() == 2 and found.max() == 201  # 200 that are read
    assert np.median(found) < 40 and 0.03 < (found == 201).mean() < 0.1


def test_listeners_play_in_order_songs_of_the_catalogue_the_first_ones_most():
    block = histories_of(3, replace(SCALE, listeners=16_000))
    first = np.zeros(len(block.timestamp), bool)
    first[block.offsets[:-1]] = True
    assert (np.diff(block.timestamp)[~first[1:]] >= 0).all() and block.timestamp.max() < NOW
    assert block.item_index.min() == 1 and block.item_index.max() == SCALE.songs
    plays = np.bincount(block.item_index)
    assert plays[1] == pytest.approx(2 * plays[2], rel=0.5) and plays[1] > 5 * plays[20]


def test_batches_have_about_the_configured_number_of_events(manifest):
    batches = list(reader_of(CASE, manifest).epoch(0))
    events = [len(batch.item_index) for batch in batches]
    assert sum(events) == manifest.events - SCALE.listeners  # each one's last play is a target only
    assert np.mean(events) == pytest.approx(TRAIN.batch_tokens, rel=0.3)
    assert max(batch.longest for batch in batches) == MODEL.max_history
    assert len(some_batches(CASE, reader_of(CASE, manifest))) == CASE.steps


def test_an_epoch_over_all_interactions():
    assert gpu_step.epoch_minutes(1_023_711_774 / 60) == pytest.approx(1)


def test_the_union_of_intervals_counts_each_moment_once():
    assert gpu_trace.union([]) == 0
    assert gpu_trace.union([(5, 7), (0, 2), (1, 3), (1.5, 1.8), (3, 4)]) == 6


def kernel(name: str, start: float, duration: float, **changed) -> dict:
    return {"ph": "X", "cat": "kernel", "name": name, "ts": start, "dur": duration} | changed


def test_a_trace_of_two_streams_by_hand():
    calls = ["cudaStreamSynchronize"] * 4 + ["cudaDeviceSynchronize", "cudaLaunchKernel"]
    events = [
        *(kernel("mix", 100 + 1000 * step, 400) for step in range(2)),
        *(kernel("loss", 300 + 1000 * step, 400) for step in range(2)),
        kernel("copy", 0, 5000, cat="gpu_memcpy"),
        *(kernel(name, 0, 9000, cat="cuda_runtime") for name in calls),
        {"ph": "i", "cat": "kernel", "name": "mark", "ts": 0},
    ]
    found = gpu_trace.summary(events, steps=2)
    assert found.busy_ms == pytest.approx(0.6)
    assert found.wall_ms == pytest.approx(0.8)  # from 100 to 1,700 us
    assert found.computing == pytest.approx(0.75)
    assert sorted(found.kernels) == [("loss", 1, 0.4, 0.5), ("mix", 1, 0.4, 0.5)]
    assert found.waits == {"cudaStreamSynchronize": 2}
    with pytest.raises(ValueError, match="no event of category 'kernel'"):
        gpu_trace.summary(events[4:], steps=2)


def test_a_profile_finds_what_ran():
    found = gpu_trace.summary(
        gpu_trace.traced(lambda: torch.ones(300, 300) @ torch.ones(300, 300), device="cpu"), steps=1, category="cpu_op"
    )
    assert {"aten::mm", "aten::ones"} <= {each.name for each in found.kernels}
    assert 0 < found.computing <= 1


def test_a_wait_is_located_at_our_line_and_the_debug_mode_is_restored(monkeypatch):
    modes: list[int | str] = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def ask() -> None:
        raise RuntimeError("called a synchronizing CUDA operation")

    assert gpu_trace.wait_in(lambda: None) == ""
    found = gpu_trace.wait_in(ask)
    assert found.startswith("tests/benchmarks/test_gpu_step.py:") and ", ask: raise RuntimeError(" in found
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        gpu_trace.wait_in(lambda: torch.ones(2, 3) @ torch.ones(2, 3))
    assert modes == [0] + ["error", 0] * 3


def test_an_error_in_a_library_is_located_at_the_line_of_ours_that_called_it():
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert gpu_trace.place_of(caught.value).endswith(': json.loads("{")')


def test_a_baseline_that_fails_is_left_out_and_ours_may_not_fail(capsys):
    calls = {"ours": lambda: 1, "other": lambda: 1 // 0}
    assert gpu.first_results(calls, needed="ours") == {"ours": 1}
    assert "other failed: ZeroDivisionError" in capsys.readouterr().out
    with pytest.raises(ZeroDivisionError):
        gpu.first_results(calls, needed="other")


def test_contestants_that_compute_another_loss_are_left_out(capsys):
    losses = {"ours": 10.0, "eager": 10.01, "compiled": 11.0}
    assert gpu_step.agreeing(losses) == {"ours": 10.0, "eager": 10.01}
    assert capsys.readouterr().out == "compiled is left out: its first loss is 11.0, that of ours 10.0\n"


@pytest.mark.parametrize(
    ("rate", "precision", "close"), [(0.0, "fp32", 1e-4), (0.2, "fp32", 1e-4), (0.2, "bf16", 0.01)]
)
def test_all_contestants_learn_the_same(manifest, rate, precision, close):
    case = replace(CASE, model=replace(MODEL, dropout=rate), train=replace(FEW, precision=precision), steps=3)
    batches = some_batches(case, reader_of(case, manifest))
    losses = {name: learn(one, batches) for name, one in contestants(case, manifest).items()}
    assert list(losses) == ["ours", "eager", "compiled"]
    for name in ("eager", "compiled"):
        np.testing.assert_allclose(losses[name], losses["ours"], rtol=close, err_msg=name)


def learn(one: Contestant, batches) -> list[float]:
    return [result.loss for result in one.learn(batches)]


def test_sizes_may_change_without_another_graph(manifest):
    case = replace(CASE, train=replace(FEW, batch_size=26))  # its groups are of 8 or 9
    batches = some_batches(replace(case, steps=8), reader_of(case, manifest))
    learn(contestants(case, manifest)["compiled"], batches)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 5


def test_functions_for_the_compiler_are_those_of_the_reference():
    positions, songs, dim, negatives = 7, 5, 4, 3
    torch.manual_seed(0)
    states, table = (torch.randn(rows, dim, dtype=torch.float64, requires_grad=True) for rows in (positions, songs))
    target, drawn = torch.randint(songs, (positions,)), torch.randint(songs, (positions, negatives))
    arguments = (states, table, target, drawn, drawn == target[:, None], 0.1)
    found, expected = softmax_to_fuse(*arguments), reference.sampled_softmax_gathered(*arguments)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(*(torch.autograd.grad(loss, [states, table]) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert torch.equal(toeplitz_to_fuse(table[:, 0]), reference.toeplitz(table[:, 0]))


@pytest.mark.parametrize(("precision", "close"), [("bf16", 0.01), pytest.param("fp32", 1e-4, marks=pytest.mark.slow)])
def test_inductor_compiles_the_baseline(manifest, precision, close):
    case = replace(CASE, train=replace(FEW, precision=precision), backend="inductor", steps=3)
    batches = some_batches(case, reader_of(case, manifest))
    entered = contestants(case, manifest)
    np.testing.assert_allclose(learn(entered["compiled"], batches), learn(entered["eager"], batches), rtol=close)


def check_lines(lines: list[dict]) -> None:
    """What `gpu_step` printed last."""
    found = next(line for line in lines if line["benchmark"] == "gpu_step")
    assert [row["contestant"] for row in found["rows"]] == ["ours", "eager", "compiled"]
    for row in found["rows"]:
        assert row.keys() == set(StepRow._fields)
        assert row.pop("peak_gb") is None
        assert all(value > 0 for value in row.values() if isinstance(value, float) and value != row["spread"])
    (loop,), (watch,) = found["loop"], found["watch"]
    assert loop["limit"] in {"the reader", "the steps"}
    assert min(loop["reader_alone"], loop["steps_alone"], loop["fed_by_reader"]) > 0
    assert 0 < watch["computing"] <= 1
    assert len(found["kernels"]) == gpu_step.TOP and {row["case"] for row in found["kernels"]} == {"tiny"}


def test_the_whole_benchmark_runs_on_the_cpu(capsys):
    gpu_step.run([replace(CASE, train=FEW)], SCALE)
    output = capsys.readouterr().out
    for title in ("a step, tiny", "the loop", "the GPU and its host", "kernels, ours"):
        assert title in output
    check_lines([json.loads(output.splitlines()[-1])])


def test_all_gpu_benchmarks_run_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, str(HERE / "rehearsal.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout and "left out" not in done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["benchmark"] for line in lines] == ["gpu_step", "gpu_mixer", "gpu_loss", "gpu_retrieval"]
    assert [len(line["rows"]) for line in lines[1:]] == [1, 1, 2]
    check_lines(lines)
