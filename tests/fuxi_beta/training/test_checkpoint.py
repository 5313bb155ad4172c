"""Exports: a round trip changes nothing, and foreign or damaged folders are refused in one line."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.training.checkpoint import TrainedModel, load_export, load_train_state, save_export
from pipelines import storage
from pipelines.errors import InputError

CONFIG = ModelConfig(dim=8, layers=2, max_history=16)


def trained(**values) -> TrainedModel:
    torch.manual_seed(0)
    candidates = torch.rand(25) < 0.8
    candidates[0] = candidates[21:] = False
    fields = {
        "model": FuXiBeta(CONFIG),
        "model_config": CONFIG,
        "train_config": TrainConfig(betas=(0.8, 0.9)),
        "item_vectors": torch.randn(25, 8),
        "candidates": candidates,
        "vocabulary_size": 20,
        "ds": "2026-03-02",
        "data_end": 1_772_323_200,
        "metadata": {"mlflow_run_id": "abc"},
        "request_hour": 20,
    }
    return TrainedModel(**(fields | values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "export"
    save_export(str(path), trained(), train_state={"items.accumulator": torch.arange(4.0)})
    return path


def test_round_trip_gives_the_same_lists_and_settings(make_batch, folder):
    before, after = trained(), load_export(str(folder))
    batch = make_batch([5, 0, 16])
    for ours, theirs in zip(after.recommend(batch, 30), before.recommend(batch, 30), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(after.scores(batch), before.scores(batch))
    for name in ("model_config", "train_config", "vocabulary_size", "ds", "data_end", "metadata", "request_hour"):
        assert getattr(after, name) == getattr(before, name)
    assert torch.equal(load_train_state(str(folder))["items.accumulator"], torch.arange(4.0))


def test_an_export_from_before_the_request_hour_was_a_setting_is_of_eight(folder):
    edit(folder / "config.json", lambda content: content.pop("request_hour"))
    assert load_export(str(folder)).request_hour == 8


@pytest.mark.parametrize(("mode", "learned_from"), [("exclusive", "first_listens"), ("all", "plays")])
def test_an_export_from_before_learn_from_was_a_setting_has_what_its_mode_meant_then(folder, mode, learned_from):
    def as_then(content: dict) -> None:
        del content["train"]["learn_from"]
        content["train"]["mode"] = mode

    edit(folder / "config.json", as_then)
    assert load_export(str(folder)).train_config.learn_from == learned_from


def test_a_model_moves_whole(folder):
    moved = load_export(str(folder)).to("meta")
    tensors = [moved.item_vectors, moved.candidates, *moved.model.parameters(), *moved.model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_makes_the_same_lists(make_batch, folder):
    here, there, batch = trained(), load_export(str(folder)).to("cuda"), make_batch([5, 0, 16])
    (items, scores), (their_items, their_scores) = here.recommend(batch, 5), there.recommend(batch, 5)
    assert torch.equal(items, their_items) and their_items.device.type == "cpu"
    torch.testing.assert_close(scores, their_scores, atol=1e-4, rtol=0)


def test_lists_hold_unheard_candidates_in_order_and_nothing_for_an_empty_history(make_batch):
    model, batch = trained(), make_batch([5, 0, 16])
    items, scores = model.recommend(batch, 30)
    assert not items[1].any()
    assert torch.isneginf(scores[1]).all()
    for row in (0, 2):
        listed = [item for item in items[row].tolist() if item]
        heard = set(batch.seen_items[int(batch.seen_offsets[row]) : int(batch.seen_offsets[row + 1])].tolist())
        allowed = {item for item in range(25) if model.candidates[item]}
        assert set(listed) == allowed - heard
        finite = scores[row][: len(listed)]
        assert torch.equal(finite, finite.sort(descending=True).values)
        assert finite.abs().max() <= 1 + 1e-6


def test_mode_all_keeps_heard_songs(make_batch):
    model, batch = trained(train_config=TrainConfig(mode="all")), make_batch([16])
    listed = {item for item in model.recommend(batch, 30)[0][0].tolist() if item}
    assert listed == {item for item in range(25) if model.candidates[item]}


def test_tensors_that_do_not_fit_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="do not fit a vocabulary of 30 songs"):
        trained(vocabulary_size=30)
    with pytest.raises(ValueError, match="do not fit"):
        trained(candidates=torch.ones(7, dtype=torch.bool))


def edit(file: Path, change) -> None:
    """Change an export, which has no digests then, as those of earlier releases."""
    content = storage.read_json(str(file))
    change(content)
    (file.parent / "digests.json").unlink()
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=99), "export format 99 is not 1"),
        (lambda c: c.pop("format"), "export format None is not 1"),
        (lambda c: c.pop("data_end"), "lacks data_end"),
        (lambda c: c["model"].update(width=3), "model.width is unknown"),
        (lambda c: c["model"].update(dim=0), "model.dim is 0"),
        (lambda c: c["model"].update(layers=3), "lacks the tensor network.blocks.2"),
        (lambda c: c["model"].update(layers=1), "has the tensor network.blocks.1"),
        (lambda c: c["model"].update(max_history=20), "has shape"),
        (lambda c: c.update(vocabulary_size=500), "do not fit a vocabulary of 500"),
    ],
)
def test_a_foreign_configuration_is_refused_in_one_line(folder, change, message):
    edit(folder / "config.json", change)
    with pytest.raises(InputError, match=message) as error:
        load_export(str(folder))
    assert "\n" not in str(error.value)


def test_missing_and_damaged_files_are_refused_in_one_line(folder, tmp_path):
    with pytest.raises(InputError, match="is not there"):
        load_export(str(tmp_path / "nowhere"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["item_vectors"]
    (folder / "digests.json").unlink()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match="lacks the tensor item_vectors"):
        load_export(str(folder))
    (folder / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_export(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_export(str(folder))
    (folder / "train_state.safetensors").unlink()
    with pytest.raises(InputError, match=r"train_state\.safetensors is not there"):
        load_train_state(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "train_state.safetensors", "digests.json"])
def test_a_flipped_bit_of_an_export_is_named(folder, name):
    file, rng = folder / name, random.Random(3)
    content = file.read_bytes()
    for _ in range(20):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{name}.*again") as error:
            load_train_state(str(folder)) if name.startswith("train") else load_export(str(folder))
        assert "\n" not in str(error.value)


def test_a_temporal_zero_model_round_trips(tmp_path, make_batch):
    config = replace(CONFIG, temporal="zero")
    model = trained(model=FuXiBeta(config), model_config=config)
    save_export(str(tmp_path / "zero"), model)
    loaded, batch = load_export(str(tmp_path / "zero")), make_batch([4])
    assert torch.equal(loaded.recommend(batch, 5)[0], model.recommend(batch, 5)[0])


def test_the_package_needs_torch_numpy_pyarrow_and_safetensors_only():
    """Everything imports where Spark, Ray, TorchRec, MLflow, Delta, boto3 and pandas are not installed."""
    program = """
import importlib, pkgutil, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        blocked = {"pyspark", "ray", "torchrec", "fbgemm_gpu", "mlflow", "deltalake", "boto3", "botocore", "pandas",
                   "pydantic", "yaml", "click", "rich", "xxhash", "scipy", "sklearn", "jobs", "matplotlib", "jinja2"}
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Missing())
import fuxi_beta
for module in pkgutil.walk_packages(fuxi_beta.__path__, "fuxi_beta."):
    importlib.import_module(module.name)
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "fine", done.stderr
