"""Settings of text stay as they are typed, and every path of a workspace is a place of its own."""

import datetime as dt

import pyarrow as pa
import pytest
from sqlalchemy.engine import make_url

from jobs.config import load_config
from jobs.day import Day
from pipelines import delta_tables, storage
from pipelines.errors import InputError
from pipelines.histories import vocabulary
from pipelines.workspace import Workspace, WorkspaceSpec, open_workspace

TYPED = [
    "ws/run #1",
    "2026",
    "on",
    "1e3",
    "null",
    "[a]",
    "'q'",
    "a: b",
    "~",
    "0x10",
    "{x}",
    "2026-03-02",
    " ws",
    "a=b",
    "*",
]


@pytest.mark.parametrize("text", TYPED)
def test_text_given_by_a_flag_or_the_environment_stays_as_it_is_typed(text):
    by_flag = load_config(
        overrides=[f"workspace={text}", f"logs.path={text}", f"mlflow.model_name={text}"], environment={}
    )
    by_environment = load_config(
        environment={"FUXI_WORKSPACE": text, "FUXI_LOGS__PATH": text, "FUXI_MLFLOW__MODEL_NAME": text}
    )
    for config in (by_flag, by_environment):
        assert (config.workspace, config.logs.path, config.mlflow.model_name) == (text, text, text)


def test_texts_in_lists_and_maps_stay_texts_and_other_settings_are_yaml():
    overrides = ["logs.play_events=[1, on, null]", "logs.columns={user_id: 2026, item_id: on}", "logs.csv.separator=;"]
    config = load_config(
        overrides=[*overrides, "train.epochs=3", "model.content=null"], environment={"FUXI_LOGS__CSV__QUOTE": "'"}
    )
    assert config.logs.play_events == ("1", "on", "null") and config.logs.columns == {
        "user_id": "2026",
        "item_id": "on",
    }
    assert (config.logs.csv.separator, config.logs.csv.quote) == (";", "'")
    assert (config.train.epochs, config.model.content) == (3, None)


PATHS = ["q?one", "q?two", "100%", "a%", "a b", "run #1", "it's", 'so "quoted"', "ü", "a+b", "a&b=c;d", "a?mode=ro"]


def test_every_path_has_a_registry_and_tables_of_its_own(tmp_path):
    songs = {}
    for number, name in enumerate(PATHS):
        workspace = Workspace(str(tmp_path / name), WorkspaceSpec())
        day = Day(load_config(environment={}), dt.date(2026, 3, 2), workspace)
        url = make_url(day.tracking_uri)
        assert (url.database, dict(url.query)) == (f"{tmp_path}/{name}/mlflow.db", {})
        songs[workspace.vocabulary] = pa.array([number, 100])
        vocabulary.append(
            workspace.vocabulary, songs[workspace.vocabulary], ds=day.ds, item_id_type="int64", run_id="r"
        )
    for uri, ids in songs.items():
        assert vocabulary.read(uri, "int64").table["item_id"].to_pylist() == ids.to_pylist()
        assert delta_tables.version(uri) == 0 and storage.exists(f"{uri}/_delta_log")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(PATHS)


def test_a_workspace_whose_tables_would_be_looked_for_elsewhere_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a%25b.*: Delta tables cannot be below .* %25 in its name: rename"):
        open_workspace(str(tmp_path / "a%25b"))
