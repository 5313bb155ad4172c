"""`fuxi train` with side information on two Ray workers: exports, warm starts and new songs."""

import dataclasses
import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fuxi_beta.data.side import align
from fuxi_beta.training.checkpoint import load_export, load_side_vocabulary, load_train_state
from fuxi_beta.training.trainer import ITEM_WEIGHT
from jobs.registry import versions as registry
from jobs.stages import evaluate, recommend, train
from jobs.training.side import catalogue, songs_of_catalogue
from pipelines.errors import InputError

from ..conftest import DAY_ONE, DAY_TWO, Deployment

SMALL = (
    "model.dim=8",
    "model.layers=1",
    "model.max_history=20",
    "train.epochs=3",
    "train.warm_start_epochs=1",
    "train.batch_size=16",
    "train.checkpoint_every_steps=4",
    "train.min_listeners=2",
    "train.negatives=16",
    "train.item_lr=0.02",
    "cluster.train_workers=2",
    "recommend.max_top_share=1",  # of so few songs one may be in all lists
)
SIDE = ("model.side=[artist, genre]", "model.content=vector")
BASELINES = ("popularity", "markov", "item-knn", "ease")
ON_DAY_TWO, LATER = 119, 120
"""Songs that nobody plays: one is released on the second day, one after it."""


def write_catalogue(folder: Path, house: Deployment, *, songs: int, artists: int = 6) -> None:
    """Songs 1..songs with an artist, genres, a vector and a date as a text."""
    numbers = range(1, songs + 1)
    released = {ON_DAY_TWO: str(DAY_TWO), LATER: str(DAY_TWO + dt.timedelta(days=1))}
    rows = pa.table(
        {
            "item_id": [house.item_id(n) for n in numbers],
            "artist": [f"artist {n % artists}" for n in numbers],
            "genre": [[f"g{n % 2}", f"g{n % 3}"] for n in numbers],
            "vector": [[1.0, n % 5, n % 7] for n in numbers],
            "release_date": [released.get(n, "2020-02-02" if n % 9 else "unknown") for n in numbers],
        }
    )
    folder.mkdir(exist_ok=True)
    pq.write_table(rows, folder / "songs.parquet")


def without_last(histories: dict[Any, list[tuple[int, int, int]]]) -> dict[Any, list[tuple[int, int, int]]]:
    """The same plays with none of the last two songs."""
    return {user: [event for event in events if event[0] < ON_DAY_TWO] for user, events in histories.items()}


@pytest.fixture
def house(deployment: Any, tmp_path: Path) -> Deployment:
    made: Deployment = deployment(*SMALL, *SIDE, f"logs.catalogue={tmp_path}/catalogue", listeners=80)
    write_catalogue(tmp_path / "catalogue", made, songs=120)
    return made


def test_a_day_lists_new_songs_by_side_information_and_the_next_goes_on_by_value(
    house: Deployment, ray_local: Any, tmp_path: Path
) -> None:
    histories = without_last(house.make_histories(DAY_ONE))
    house.sessionized(DAY_ONE, histories)
    first = train.run(house.day(DAY_ONE))
    one = load_export(first["export"])
    assert first["loss_curve"][-1][1] < first["loss_curve"][0][1]
    assert first["candidates"] == int(one.candidates.sum())
    learned = train._loop_config(house.day(DAY_ONE), house.sessionized(DAY_ONE, histories), parent="").candidates
    cold = one.candidates[: len(learned)] & ~torch.from_numpy(learned)
    assert cold.sum() > 10 and one.item_vectors[: len(learned)][cold].any(dim=1).all()
    assert not one.candidates[ON_DAY_TWO] and not one.candidates[LATER]
    state = load_train_state(first["export"])
    assert {"items.side.weight", "items.side.accumulator", "items.content.exp_avg"} <= state.keys()
    assert not torch.equal(state[ITEM_WEIGHT], one.item_vectors)

    house.day(DAY_ONE).finish("train", first, 0.0)
    measured = evaluate.run(house.day(DAY_ONE))
    assert measured["listeners"] > 0 and set(measured["metrics"]) == {"challenger", *BASELINES}

    registry.promote(house.day(DAY_ONE), first["model_version"])
    write_catalogue(tmp_path / "catalogue", house, songs=120, artists=9)
    house.sessionized(DAY_TWO, histories)
    second = train.run(house.day(DAY_TWO))
    two = load_export(second["export"])
    assert second["warm_started_from"] == first["model_version"] and second["epochs"] == 1
    assert second["loss_curve"][0][1] < first["loss_curve"][0][1]
    before, after = load_side_vocabulary(first["export"]), load_side_vocabulary(second["export"])
    assert before is not None and after is not None and after.rows == before.rows + 3
    assert after.pairs[: len(before.pairs)].equals(before.pairs)
    assert two.candidates[ON_DAY_TWO] and not two.candidates[LATER] and two.item_vectors[ON_DAY_TWO].any()
    assert not two.as_of(house.day(DAY_TWO).calendar.request_time(DAY_ONE)).candidates[ON_DAY_TWO]
    house.choose(DAY_TWO, second["model_version"])
    assert recommend.run(house.day(DAY_TWO))["listeners"] > 50


def test_a_champion_without_side_information_is_what_the_day_starts_from(
    deployment: Any, tmp_path: Path, ray_local: Any
) -> None:
    """At step 0 every vector is the champion's."""
    made: Deployment = deployment(*SMALL, listeners=40)
    made.sessionized(DAY_ONE)
    champion = made.trained(DAY_ONE)
    registry.promote(made.day(DAY_ONE), champion)
    write_catalogue(tmp_path / "catalogue", made, songs=120)
    model = dataclasses.replace(made.config.model, side=("artist",), content="vector")
    logs = made.config.logs.model_copy(update={"catalogue": f"{tmp_path}/catalogue"})
    made.config = made.config.model_copy(update={"model": model, "logs": logs})
    manifest, day = made.sessionized(DAY_TWO, made.histories), made.day(DAY_TWO)
    version, folder = train._parent(day, manifest)
    assert version == champion
    loop = train._loop_config(day, manifest, folder)
    trainer = started(loop, folder)
    ids = torch.arange(121)
    torch.testing.assert_close(trainer.table(ids).detach(), load_export(folder).item_vectors[:121], atol=0, rtol=0)


def started(loop: Any, parent: str) -> Any:
    """A trainer in this process, as a worker starts it from a parent."""
    from jobs.training.worker import _new_trainer

    trainer = _new_trainer(loop, torch.device("cpu"))
    trainer.warm_start_from(load_export(parent), optimizer_state(parent))
    return trainer


def optimizer_state(folder: str) -> dict[str, torch.Tensor]:
    return load_train_state(folder) if Path(folder, "train_state.safetensors").exists() else {}


def test_a_model_that_takes_no_side_information_any_more_starts_from_the_vectors(
    house: Deployment, ray_local: Any
) -> None:
    manifest = house.sessionized(DAY_ONE, without_last(house.make_histories(DAY_ONE)))
    export = train.run(house.day(DAY_ONE))["export"]
    for side, content in (((), None), (("genre",), "vector"), (("artist", "genre"), None)):
        model = dataclasses.replace(house.config.model, side=side, content=content)
        house.config = house.config.model_copy(update={"model": model})
        trainer = started(train._loop_config(house.day(DAY_ONE), manifest, export), export)
        vectors, ids = load_export(export).item_vectors, torch.arange(121)
        same = vectors[ids].any(dim=1)
        assert same.sum() > 100 and trainer.table(ids).detach()[1:].any(dim=1).all()
        torch.testing.assert_close(trainer.table(ids).detach()[same], vectors[ids][same], atol=0, rtol=0)


def test_the_catalogue_of_a_day_is_read_with_times_and_its_songs_get_an_index_when_they_are_there(
    house: Deployment,
) -> None:
    house.sessionized(DAY_ONE)
    rows = catalogue(house.day(DAY_ONE))
    assert rows["release_date"].null_count == 13  # "unknown" is no time
    ids = set(range(1, 121))
    there = {n: {house.item_id(i) for i in ids - missing} for n, missing in ((1, {119, 120}), (2, {120}))}
    for ds, expected in ((DAY_ONE, there[1]), (DAY_TWO, there[2])):
        found = songs_of_catalogue(house.day(ds))
        assert found is not None and set(found.to_pylist()) == expected
    aligned = align(rows, pa.array([house.item_id(3), 5]))
    assert aligned["artist"].to_pylist() == ["artist 3", None]


def test_a_day_without_a_catalogue_is_refused_in_one_line(deployment: Any) -> None:
    made: Deployment = deployment(*SMALL, *SIDE)
    made.sessionized(DAY_ONE)
    with pytest.raises(InputError, match="name artist, genre, vector, but the day has no catalogue: set") as refused:
        train.run(made.day(DAY_ONE))
    assert "\n" not in str(refused.value)
    plain: Deployment = deployment(*SMALL, folder="plain")
    assert songs_of_catalogue(plain.day(DAY_ONE)) is None


def test_side_information_counts_in_the_hash_where_there_is_any(deployment: Any) -> None:
    plain, with_side = deployment(*SMALL).config, deployment(*SMALL, *SIDE, folder="side").config
    assert not {"side", "content"} & plain.hashed()["model"].keys()
    assert with_side.hashed()["model"]["side"] == ["artist", "genre"] and with_side.hash() != plain.hash()
    assert np.all([with_side.model.side == ("artist", "genre"), with_side.model.content == "vector"])
