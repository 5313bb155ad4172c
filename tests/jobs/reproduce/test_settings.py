"""Settings of runs by `--set`: checked as the daily job checks them, part of the name, refused where they clash."""

import pytest

from fuxi_beta.presets import preset
from jobs.reproduce.settings import different_settings, label_of, settings_of, with_settings
from jobs.reproduce.specs import RunSelection, specs
from pipelines.errors import InputError

DEMO = preset("demo")


def select(*models: str, **request):
    request = {"protocol": "next_day", "days": 7, **request}
    return specs(RunSelection(DEMO, models=models or ("fuxi-beta",), **request))


def test_settings_lie_over_the_preset_and_over_what_the_protocol_chooses():
    overrides = ("model.dim=128", "train.mode=all", "train.lr=1e-3", "train.betas=[0.9, 0.95]")
    model, train = with_settings(DEMO.model, DEMO.train, overrides)
    assert (model.dim, train.mode, train.lr, train.betas) == (128, "all", 1e-3, (0.9, 0.95))
    assert (train.item_optimizer, train.batch_size) == ("adamw", 32)  # the preset's
    (spec,) = select(overrides=("train.min_listeners=2", "train.mode=all"))
    assert (spec.configs(DEMO)[1].min_listeners, spec.configs(DEMO)[1].mode) == (2, "all")
    assert select()[0].configs(DEMO)[1].mode == "exclusive"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dimm=3", "unknown key model.dimm: did you mean model.dim?"),
        ("model.dim=wide", "model.dim: .*valid integer"),
        ("model.heads=5", "model.heads is 5: it must divide model.dim"),
        ("train.mode=some", "train.mode"),
        ("recommend.k=3", "settings of model and train"),
        ("train.epochs=3", "by --epochs"),
        ("model.dim", "section.key=value"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line_before_anything_runs(override, message):
    with pytest.raises(InputError, match=message) as refused:
        select(overrides=(override,))
    assert "\n" not in str(refused.value)


def test_runs_are_named_by_a_label_and_baselines_are_not():
    assert [spec.name for spec in select("fuxi-beta", "item-knn", overrides=("model.dim=128", "train.mode=all"))] == [
        "fuxi-beta-dim-128-mode-all-L2-e6-s1-next-day-7d",
        "item-knn-next-day-7d",
    ]
    (named,) = select(overrides=("model.dim=128",), label="wide", seeds=(4,))
    assert named.name == "fuxi-beta-wide-L2-e6-s4-next-day-7d"
    assert [spec.system for spec in select("baselines")] == ["popularity", "recency", "markov", "item-knn", "ease"]
    with pytest.raises(InputError, match="--label a/b"):
        label_of((), "a/b")


def test_settings_of_a_stored_run_are_compared_and_those_it_lacks_had_their_defaults():
    stored = settings_of(DEMO.model, DEMO.train)
    assert not different_settings(stored, settings_of(DEMO.model, DEMO.train))
    del stored["train"]["compile"]  # as if the setting were newer than the run
    assert not different_settings(stored, settings_of(DEMO.model, DEMO.train))
    wider = settings_of(*with_settings(DEMO.model, DEMO.train, ("model.dim=128", "train.compile=true")))
    assert different_settings(stored, wider) == ["model.dim is 64, not 128", "train.compile is False, not True"]


def test_days_belong_to_the_daily_protocol():
    with pytest.raises(InputError, match="--days and --served belong to next_day"):
        select(protocol="leave_one_out")
    with pytest.raises(InputError, match="--days and --served belong to next_day"):
        select(protocol="leave_one_out", days=1, served=True)
    with pytest.raises(InputError, match="the ceiling belongs to --protocol next_day"):
        select("ceiling-history", protocol="leave_one_out", days=1)
