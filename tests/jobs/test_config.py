"""Configuration: precedence, types and one clear line for every mistake."""

from dataclasses import replace
from pathlib import Path

import pytest

from fuxi_beta.config import TrainConfig
from fuxi_beta.presets import preset
from jobs.config import RENAMED, Config, load_config
from pipelines.errors import InputError

DEMO = Path(__file__).parents[2] / "jobs" / "templates" / "demo.yaml"


def load(tmp_path: Path, text: str = "", **options) -> Config:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return load_config(str(file), environment=options.pop("environment", {}), **options)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    text = "train: {epochs: 2, batch_size: 64, negatives: 16}"
    environment = {"FUXI_TRAIN__EPOCHS": "3", "FUXI_TRAIN__BATCH_SIZE": "32", "HOME": "/nowhere"}
    config = load(tmp_path, text, environment=environment, overrides=["train.epochs=4"])
    assert (config.train.epochs, config.train.batch_size, config.train.negatives) == (4, 32, 16)
    assert config.train.lr == TrainConfig().lr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "unknown key train.epoch: did you mean train.epochs?"),
        ("trian: {epochs: 3}", "unknown key trian: did you mean train?"),
        ("train: 3", "train is a section of settings, found 3"),
        ("train: {epochs: many}", "train.epochs"),
        ("model: {heads: 3}", "model.heads is 3: it must divide model.dim"),
        ("logs: {format: avro}", "logs.format"),
        ("- a\n- b", "must be a mapping"),
        ("{", "not valid YAML"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        load(tmp_path, text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("text", "bounds"), [("3", (3, 3)), ("[1, 4]", (1, 4)), ("[2, 2]", (2, 2))])
def test_the_number_of_workers_is_a_number_or_its_bounds(tmp_path: Path, text: str, bounds: tuple[int, int]) -> None:
    for config in (
        load(tmp_path, f"cluster: {{train_workers: {text}}}"),
        load(tmp_path, overrides=[f"cluster.train_workers={text}"]),
        load(tmp_path, environment={"FUXI_CLUSTER__TRAIN_WORKERS": text}),
    ):
        assert config.cluster.worker_bounds == bounds
        assert config.hash() == load(tmp_path).hash()


@pytest.mark.parametrize("text", ["0", "[0, 2]", "[3, 2]", "[1, 2, 3]", "[2]", "[]", "many", "1.5", "true", "null"])
def test_another_number_of_workers_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        InputError, match=r"cluster\.train_workers.*write a number from 1 on, or \[min, max\]"
    ) as refused:
        load(tmp_path, f"cluster: {{train_workers: {text}}}")
    assert "\n" not in str(refused.value)


def test_a_misspelt_environment_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"FUXI_TRAIN__EPOCH: unknown key train\.epoch"):
        load(tmp_path, environment={"FUXI_TRAIN__EPOCH": "3"})


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(InputError, match=r"write it as section\.key=value"):
        load_config(overrides=["train.epochs"], environment={})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml is not there"):
        load_config("/nowhere.yaml", environment={})


def test_the_hash_follows_what_is_computed_not_where(tmp_path: Path) -> None:
    base = load(tmp_path).hash()
    assert (
        load(tmp_path, overrides=["workspace=/elsewhere", "cluster.train_workers=4", "maintain.every_days=1"]).hash()
        == base
    )
    assert load(tmp_path, overrides=["train.seed=2"]).hash() != base


@pytest.mark.parametrize(
    ("options", "source"),
    [
        ({"text": "sequences: {max_deltas: 3}"}, "c.yaml"),
        ({"environment": {"FUXI_SEQUENCES__MAX_DELTAS": "3"}}, "environment variable FUXI_SEQUENCES__MAX_DELTAS"),
        ({"overrides": ["sequences.max_deltas=3"]}, "--set sequences.max_deltas=3"),
    ],
)
def test_a_renamed_key_is_refused_in_one_line_with_its_new_name(tmp_path: Path, options: dict, source: str) -> None:
    with pytest.raises(InputError) as refused:
        load(tmp_path, **options)
    assert source in str(refused.value) and "\n" not in str(refused.value)
    assert "sequences.max_deltas is now called sequences.max_increments" in str(refused.value)


def test_renamed_keys_exist_and_count_in_the_hash_under_their_old_names() -> None:
    config = load_config(environment={})
    hashed = config.hashed()
    for old, new in RENAMED.items():
        (old_section, old_key), (section, key) = old.split("."), new.split(".")
        assert hashed[old_section][old_key] == getattr(getattr(config, section), key)
        assert key not in hashed[section]
    assert config.hash() != load_config(overrides=["sequences.max_increments=3"], environment={}).hash()


def test_bounds_that_only_refuse_a_day_are_no_part_of_the_hash() -> None:
    base = load_config(environment={}).hash()
    bounds = ["logs.max_rejected_share=0.9", "quality.min_plays=1", "quality.max_null_shares={play_ms: 0.5}"]
    bounds += ["recommend.max_overlap=0.5", "recommend.max_empty_share=0", "recommend.min_artists=3"]
    assert load_config(overrides=bounds, environment={}).hash() == base
    assert load_config(overrides=["logs.max_late_days=3"], environment={}).hash() != base


def test_the_request_hour_is_part_of_the_hash_once_it_is_set() -> None:
    base = load_config(environment={}).hash()  # that of run records from before it was a setting
    assert load_config(overrides=["serving.request_hour=8"], environment={}).hash() == base
    assert load_config(overrides=["serving.request_hour=9"], environment={}).hash() != base


def test_reasons_are_part_of_the_hash_where_they_are_not_the_default() -> None:
    config = load_config(environment={})
    assert "reasons" not in config.hashed()["recommend"]  # as in run records from before it was a setting
    assert load_config(overrides=["recommend.reasons=2"], environment={}).hash() == config.hash()
    off = load_config(overrides=["recommend.reasons=0"], environment={})
    assert off.hash() != config.hash() and off.hashed()["recommend"]["k"] == 30


@pytest.mark.parametrize(("mode", "learned_from"), [("exclusive", "first_listens"), ("all", "plays")])
def test_what_is_learned_from_counts_in_the_hash_where_it_is_not_what_the_mode_once_meant(
    mode: str, learned_from: str
) -> None:
    def configured(learn_from: str) -> Config:
        overrides = [f"train.mode={mode}", f"train.learn_from={learn_from}"]
        return load_config(overrides=overrides, environment={})

    other = "plays" if learned_from == "first_listens" else "first_listens"
    assert "learn_from" not in configured(learned_from).hashed()["train"]  # as in run records from before it was one
    assert configured(other).hashed()["train"]["learn_from"] == other
    assert configured(other).hash() != configured(learned_from).hash()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recommend.reasons=-1"], r"recommend\.reasons: .* greater than or equal to 0 \(found '?-1'?\)"),
        (["serving.request_hour=24"], r"serving\.request_hour: .* less than or equal to 23 \(found '?24'?\)"),
        (["quality.max_null_shares={plays: 0.5}"], r"quality\.max_null_shares: plays is no column: .*, play_ms,"),
        (["quality.max_null_shares={play_ms: 50}"], r"quality\.max_null_shares\.play_ms: .* less than or equal to 1"),
        (["quality.min_volume_ratio=1.5"], r"quality\.min_volume_ratio: .* less than or equal to 1"),
        (["quality.trailing_days=2"], r"quality\.trailing_days: .* greater than or equal to 3"),
        (["train.unchosen_weight=0.5"], r"^train\.unchosen_weight is 0\.5, but logs\.unchosen_sources is empty.* not$"),
        (["logs.columns={play_source: how}"], r"^logs: columns names play_source, .* of how that mean .* the play$"),
        (["train.unchosen_weight=2"], r"^train: train\.unchosen_weight is 2\.0: it must be between 0 and 1$"),
        (["quality.max_age=1"], r"unknown key quality\.max_age: did you mean quality\.max_age_s\?"),
    ],
)
def test_a_bound_that_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(overrides=overrides, environment={})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=bert4rec"], r"model\.name is 'bert4rec': it must be one of esasrec, flash, "),
        (["model.temporal=cosine"], r"model\.temporal: Input should be 'pow', 'exp', .* \(found 'cosine'\)"),
        (["model.name=hstu", "train.precision=bf16"], r"train\.precision=bf16: only fuxi-beta .*, not hstu"),
        (
            ["model.temporal=sin", "train.compile=true"],
            r"train\.compile=true: only fuxi-beta with temporal",
        ),
    ],
)
def test_a_model_that_cannot_be_is_refused_when_the_configuration_is_read(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(overrides=overrides, environment={})


def test_the_demo_preset_is_what_the_demo_trains_with() -> None:
    config, expected = load_config(str(DEMO), environment={}), preset("demo")
    assert config.model == replace(expected.model, side=("artist_id",), content_channel=True)
    kept = {name: getattr(expected.train, name) for name in ("checkpoint_every_steps", "min_steps")}
    assert replace(config.train, **kept) == expected.train  # a run of `fuxi reproduce` has the epochs that it names
