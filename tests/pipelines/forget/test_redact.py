"""User ids are found in text, and removed from messages."""

import pytest

from pipelines.forget.redact import possible_users, redacted


@pytest.mark.parametrize(
    ("text", "column", "kind", "expected"),
    [
        ('{"listener": 731, "plays": 42}', "listener", "int64", {731}),
        ('{"listener": "+731 ", "plays": "42"}', "listener", "int64", {731}),
        ('{"listener": 731.0}', "listener", "int64", {731}),
        ('{"listener": null, "plays": 42}', "listener", "int64", set()),
        ('{"listener": "731;42"}', "listener", "int64", {731, 42}),
        ('{"other": 731}', "listener", "int64", {731}),
        ('{"listener": 731, "broken', "listener", "int64", {731}),
        ("731,5,1,2,3,-4", "listener", "int64", {731, 5, 1, 2, 3, 4, -4}),
        ("8888888888888888888,9999999999999999999", "listener", "int64", {8888888888888888888}),
        ('{"u": "a b", "x": "c"}', "u", "string", {"a b"}),
        ('{"u": " a b "}', "u", "string", {" a b ", "a b"}),
    ],
)
def test_whose_a_rejected_row_is(text, column, kind, expected):
    assert set(possible_users(text, column, kind)) == expected


@pytest.mark.parametrize("text", ['"anna:7/x y",5,,,,', "5\tanna:7/x y\t\t9", '{"u": "anna:7/x y", "t": brok'])
def test_a_text_id_is_found_in_raw_text(text):
    assert "anna:7/x y" in possible_users(text, "u", "string")


def test_ids_are_removed_from_messages_short_ones_only_after_listener_or_user():
    is_forgotten = {"12", "731055900"}.__contains__
    assert redacted("user 12 has 12 plays; 731055900: bad", is_forgotten) == (
        "user (forgotten) has 12 plays; (forgotten): bad"
    )
