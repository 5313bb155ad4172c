"""Side information laid out by item index, against loops over songs and hand-worked examples."""

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fuxi_beta.config import ModelConfig
from fuxi_beta.data.side import (
    LONG_AGO,
    NEVER,
    SideInformation,
    SideVocabulary,
    SongSide,
    align,
    appearance,
    side_information,
)
from pipelines.calendar import Calendar
from pipelines.errors import InputError

CUT = Calendar().day_start(dt.date(2026, 3, 1))
BEFORE, AFTER = dt.date(2026, 2, 1), dt.date(2026, 3, 1)
SONGS = 7
PLAYED = np.array([False, True, True, True, True, False, False, False])  # songs 5 to 7 nobody has played
CANDIDATES = np.array([False, True, True, True, False, False, False, False])
CATALOGUE = pa.table(
    {
        "artist": ["b", "a", None, "b", "a", "new", ""],
        "genre": [["x", "y"], ["x"], [], None, ["y", None, "z"], ["z"], ["z", "z"]],
        "release_date": pa.array([BEFORE, BEFORE, None, BEFORE, BEFORE, BEFORE, AFTER]),
        "vector": pa.array([[1, 2], None, [3, 4], [5, 6], [7, 8], None, None], pa.list_(pa.float64())),
    }
)


def information(
    catalogue: pa.Table | None = CATALOGUE,
    side: tuple[str, ...] = ("artist", "genre"),
    content: str | None = None,
    **values,
) -> SideInformation:
    model = ModelConfig(side=side, content=content)
    options = {"candidates": CANDIDATES, "played": PLAYED, "cut": CUT} | values
    found = side_information(catalogue, model=model, calendar=Calendar(), **options)
    assert found is not None
    return found


def described(found: SideInformation) -> list[list[tuple[str, str | None, float]]]:
    """Each song's entries in words, padding first."""
    pairs, side = found.vocabulary.pairs.to_pylist(), found.side
    entries = [
        [
            (*pairs[int(side.rows[entry]) - 1].values(), round(float(side.weights[entry]), 4))
            for entry in range(side.offsets[song], side.offsets[song + 1])
        ]
        for song in range(len(side))
    ]
    return [sorted(of_song, key=str) for of_song in entries]


def test_rows_are_of_values_that_songs_learned_from_have_and_of_what_is_unknown() -> None:
    vocabulary = information().vocabulary
    artists = [("artist", None), ("artist", "a"), ("artist", "b")]
    genres = [("genre", None), ("genre", "x"), ("genre", "y")]  # nobody has played a song with z
    assert [tuple(pair.values()) for pair in vocabulary.pairs.to_pylist()] == artists + genres
    assert vocabulary.rows == 7 and vocabulary.columns == ("artist", "genre")
    assert (vocabulary.unknown("artist"), vocabulary.unknown("genre"), vocabulary.unknown("label")) == (1, 4, None)


def test_several_values_share_a_weight_of_one_and_null_empty_missing_and_untrained_values_are_unknown() -> None:
    unknown = ("artist", None, 1.0)
    assert described(information()) == [
        [],
        [("artist", "b", 1.0), ("genre", "x", 0.5), ("genre", "y", 0.5)],
        [("artist", "a", 1.0), ("genre", "x", 1.0)],
        sorted([unknown, ("genre", None, 1.0)], key=str),
        [("artist", "b", 1.0), ("genre", None, 1.0)],
        sorted([("artist", "a", 1.0), ("genre", "y", 0.5), ("genre", None, 0.5)], key=str),
        [unknown, ("genre", None, 1.0)],
        [unknown, ("genre", None, 0.5), ("genre", None, 0.5)],
    ]


def test_a_song_that_the_catalogue_lacks_has_the_unknown_rows() -> None:
    catalogue = pa.table({"item_id": [30, 10, 30], "artist": ["old", "a", "b"]})
    aligned = align(catalogue, pa.array([10, 20, 30]))
    assert aligned["artist"].to_pylist() == ["a", None, "b"]  # the last row of a song counts
    assert described(information(aligned, side=("artist",)))[4:] == [[("artist", None, 1.0)]] * 4
    with pytest.raises(InputError, match=r"catalogue: column item_id is missing \(found artist\)"):
        align(catalogue.select(["artist"]), pa.array([10]))


def test_rows_never_change_their_meaning_while_songs_and_columns_come() -> None:
    first = information(side=("artist",)).vocabulary
    more = np.arange(SONGS + 1) > 0
    second = information(side=("genre", "artist"), played=more, candidates=more, cut=CUT + 86_400, parent=first)
    assert second.vocabulary.pairs[: len(first.pairs)].equals(first.pairs)
    added = [tuple(pair.values()) for pair in second.vocabulary.pairs.to_pylist()[len(first.pairs) :]]
    assert added == [("genre", None), ("genre", "x"), ("genre", "y"), ("genre", "z"), ("artist", "new")]
    again = information(side=("artist", "genre"), played=more, candidates=more, cut=CUT, parent=second.vocabulary)
    assert again.vocabulary.pairs.equals(second.vocabulary.pairs)


def test_numbers_dictionaries_and_lists_of_numbers_are_values_like_texts() -> None:
    values = {"n": pa.array([7, 7, 8, 9]), "d": pa.array(["x", "y", "x", "z"]).dictionary_encode()}
    catalogue = pa.table(values | {"l": pa.array([[1, 2], [2], [], [3]], pa.large_list(pa.int32()))})
    found = described(information(catalogue, side=("n", "d", "l")))
    assert found[1] == [("d", "x", 1.0), ("l", "1", 0.5), ("l", "2", 0.5), ("n", "7", 1.0)]
    assert found[4] == [("d", "z", 1.0), ("l", "3", 1.0), ("n", "9", 1.0)]


def test_new_songs_are_listed_by_what_is_known_of_them_from_when_they_appear() -> None:
    found = information()
    day = Calendar().day_start(BEFORE)
    # 4 is rare, and 5 nobody has played: both by artist. Of 6 and 7 nothing is known that was learned from.
    assert found.listed_from.tolist() == [NEVER, LONG_AGO, LONG_AGO, LONG_AGO, day, day, NEVER, NEVER]
    assert found.own.nonzero()[0].tolist() == [1, 2, 3]


def test_a_rare_song_of_which_nothing_is_known_keeps_its_own_row() -> None:
    found = information(CATALOGUE.set_column(0, "artist", pa.array(["b", "a", "b", None, "a", "new", ""])))
    assert found.own.nonzero()[0].tolist() == [1, 2, 3, 4] and found.listed_from[4] == NEVER


def test_what_is_released_from_the_cut_on_tells_nothing_of_a_song_that_was_played() -> None:
    late = pa.array([AFTER, BEFORE, None, AFTER, BEFORE, AFTER, AFTER])
    found = information(CATALOGUE.set_column(2, "release_date", late), content="vector")
    assert described(found)[1] == described(found)[4] == sorted([("artist", None, 1.0), ("genre", None, 1.0)], key=str)
    assert "b" not in found.vocabulary.pairs["value"].to_pylist()  # both songs of b are released later
    assert found.side.content is not None and found.side.content[[1, 4]].any() == False  # noqa: E712
    assert found.listed_from[4] == NEVER and found.own[4]


def test_entries_of_the_future_change_nothing_that_is_learned() -> None:
    """Without the rows from the cut on everything is the same, but for the songs that these rows are of."""
    late = CATALOGUE.set_column(2, "release_date", pa.array([BEFORE] * 4 + [AFTER] * 3))
    absent = pa.concat_tables([late[:4], pa.table({"artist": pa.nulls(3, pa.string())})], promote_options="default")
    with_them, without = information(late), information(absent)
    assert with_them.vocabulary.pairs.equals(without.vocabulary.pairs)
    assert described(with_them)[:5] == described(without)[:5]
    assert with_them.own.tolist() == without.own.tolist()
    at_the_cut = [found.listed_from < CUT for found in (with_them, without)]
    assert at_the_cut[0].tolist() == at_the_cut[1].tolist()


def test_content_vectors_are_laid_out_by_song_with_zeros_where_there_is_none() -> None:
    found = information(side=(), content="vector")
    assert found.side.content is not None
    assert found.side.content.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4], [5, 6], [7, 8], [0, 0], [0, 0]]
    assert len(found.side.rows) == 0 and found.vocabulary.rows == 1
    assert found.own.nonzero()[0].tolist() == [1, 2, 3]  # 4 and 5 are listed by their vectors
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(14.0)), 2)
    assert information(pa.table({"f": fixed}), (), "f").side.content[7].tolist() == [12, 13]  # type: ignore[index]


def test_a_song_appears_when_it_is_released_and_available() -> None:
    berlin, day = Calendar("Europe/Berlin"), pa.array([dt.date(2026, 3, 2), None], pa.date32())
    from_then = pa.array([None, 5], pa.int64())
    found = appearance(pa.table({"release_date": day, "available_from": from_then}), berlin)
    assert found.tolist() == [LONG_AGO, berlin.day_start(dt.date(2026, 3, 2)), 5]
    moment = pa.array([dt.datetime(2026, 3, 2, 12), None], pa.timestamp("us"))
    assert (
        appearance(pa.table({"release_date": moment}), berlin)[1] == Calendar().day_start(dt.date(2026, 3, 2)) + 43200
    )
    assert appearance(pa.table({"title": ["x"]}), berlin).tolist() == [LONG_AGO, LONG_AGO]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"catalogue": None}, "model.side names artist, but there is no catalogue"),
        (
            {"side": ("label",)},
            r"model.side names label, which the catalogue lacks \(it has artist, genre, release_date",
        ),
        (
            {"side": (), "content": "artist"},
            "model.content: catalogue column artist is string, expected lists of numbers",
        ),
        ({"content": "ragged"}, r"vectors of catalogue column ragged have lengths \[1, 2\], expected one length"),
        ({"content": "broken"}, "the vector of song 2 in column broken is not finite"),
        ({"side": ("struct",)}, "model.side: catalogue column struct is struct<.*>, expected text, numbers, or lists"),
        ({"when": pa.array(["soon"] * 7)}, "catalogue: column release_date is string, expected dates or Unix seconds"),
    ],
)
def test_a_catalogue_that_cannot_be_used_is_refused_in_one_line(values: dict, message: str) -> None:
    catalogue = CATALOGUE.append_column("ragged", pa.array([[1.0], [1.0, 2.0], *[None] * 5]))
    catalogue = catalogue.append_column("broken", pa.array([[1.0], [np.nan], *[None] * 5]))
    catalogue = catalogue.append_column("struct", pa.array([{"a": 1}] * 7))
    if "when" in values:
        catalogue = catalogue.set_column(2, "release_date", values.pop("when"))
    with pytest.raises(InputError, match=message) as refused:
        information(**({"catalogue": catalogue} | values))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [None, "vector"])
def test_what_is_written_for_workers_is_read_back(tmp_path: Path, content: str | None) -> None:
    side = information(content=content).side
    side.write(str(tmp_path / "side.safetensors"))
    again = SongSide.read(str(tmp_path / "side.safetensors"))
    for name in ("offsets", "rows", "weights", "content"):
        ours, theirs = getattr(side, name), getattr(again, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or (np.array_equal(ours, theirs) and ours.dtype == theirs.dtype)
    assert again.size == side.size and len(again) == SONGS + 1


def test_a_model_without_columns_takes_no_side_information() -> None:
    nothing = {"candidates": CANDIDATES, "played": PLAYED, "cut": CUT}
    assert side_information(CATALOGUE, model=ModelConfig(), calendar=Calendar(), **nothing) is None


def test_an_empty_vocabulary_has_the_padding_row_alone() -> None:
    assert SideVocabulary().rows == 1 and SideVocabulary().columns == ()
