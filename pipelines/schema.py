"""The one home of column names, Arrow schemas and specifications of Delta tables.

Logs, catalogue, shards and Delta tables have their schemas here. Times are Unix seconds, UTC. Ids
of users and items are int64 or string, one type per column and per workspace.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.errors import InputError

WORKSPACE_SCHEMA_VERSION = 1

# Interactions, after the configured column mapping.
USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
EVENT_TYPE = "event_type"
PLAY_MS = "play_ms"
DURATION_MS = "duration_ms"
PLAY_SOURCE = "play_source"
REQUIRED_COLUMNS = (USER_ID, ITEM_ID, TIMESTAMP)
OPTIONAL_COLUMNS = (EVENT_TYPE, PLAY_MS, DURATION_MS, PLAY_SOURCE)

# Catalogue.
TITLE = "title"
ARTIST_ID = "artist_id"
ARTIST = "artist"
RELEASE_DATE = "release_date"
WORK_ID = "work_id"
AVAILABLE_FROM = "available_from"
AVAILABLE_UNTIL = "available_until"
WITHDRAWN = "withdrawn"
EXPLICIT = "explicit"

# Tables of list rules.
ACTION = "action"
UNTIL = "until"

# Shards, vocabulary, lists.
ITEM_INDEX = "item_index"
COMPLETION = "completion"
UNCHOSEN = 128
"""Added to a stored `completion`, which is 0 to 100 per cent: the listener did not choose the play."""
SESSION_INDEX = "session_index"
HEARD_BEFORE = "heard_before"
NUM_EVENTS = "num_events"
BUCKET = "bucket"
DS = "ds"
FIRST_DS = "first_ds"
LISTENERS = "listeners"
PLAYS = "plays"
REASON = "reason"
LANDING_DAY = "landing_day"
SOURCE_FILE = "source_file"
ITEMS = "items"
SCORE = "score"
PROPENSITY = "propensity"
REASONS = "reasons"
WEIGHT = "weight"
SEGMENT = "segment"
SHORT = "short"
SOURCE = "source"
MODEL_VERSION = "model_version"
STALE_DAYS = "stale_days"

# Metrics and input quality.
PROTOCOL = "protocol"
SLICE = "slice"
METRIC = "metric"
VALUE = "value"
POSITION = "position"
MEASURED_DS = "measured_ds"
LOWER = "lower"
UPPER = "upper"
PASSED = "passed"
ACCEPTED_OVERRIDE = "accepted_override"

PADDING_INDEX = 0
"""Item index 0 is padding: no song ever has it."""

SOURCE_MODEL, SOURCE_POPULAR = "model", "popular"
"""Values of `source`: the list is the model's, or it is of popular songs. A baseline that serves in the model's place
has its name there."""

SOURCE_DEFAULT = "default"
"""In the table of hits: the listener had no list and saw the default list."""

EVERY = "all"
"""In the tables of hits and of list quality: of every segment, of every source."""
DEFAULT_SEGMENT = "default"
"""In the tables of hits and of list quality: lists whose `segment` is null."""

MAX_LIST_ITEMS = 1000
"""Songs in a list: the constraint of the table; `recommend.k` is usually far below."""


ID_TYPES: dict[str, pa.DataType] = {"int64": pa.int64(), "string": pa.string()}


def id_type(name: str) -> pa.DataType:
    """The Arrow type of an id column from its name in configuration and manifests ("int64" or "string")."""
    if name not in ID_TYPES:
        raise InputError(f"id type {name!r} is not supported: use one of {', '.join(ID_TYPES)}")
    return ID_TYPES[name]


def id_type_name(arrow_type: pa.DataType) -> str:
    """The name of the id type that stores ids of an Arrow type, the inverse of `id_type`."""
    if pa.types.is_integer(arrow_type):
        return "int64"
    if pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type):
        return "string"
    raise InputError(f"ids of type {arrow_type} are not supported: convert them to whole numbers or text")


CATALOGUE_SCHEMA = pa.schema(
    [
        (ITEM_ID, pa.int64()),
        (TITLE, pa.string()),
        (ARTIST_ID, pa.int64()),
        (ARTIST, pa.string()),
        (DURATION_MS, pa.int32()),
        (RELEASE_DATE, pa.date32()),
    ]
)
"""Songs as the music service describes them; titles and artists for people to read."""


def sequence_schema(user_id_type: str) -> pa.Schema:
    """One listener's history in a shard: parallel lists, oldest event first.

    `completion` is in per cent, plus UNCHOSEN.
    """
    return pa.schema(
        [
            (USER_ID, id_type(user_id_type)),
            (ITEM_INDEX, pa.list_(pa.int32())),
            (TIMESTAMP, pa.list_(pa.int64())),
            (COMPLETION, pa.list_(pa.uint8())),
            (SESSION_INDEX, pa.list_(pa.int32())),
            (HEARD_BEFORE, pa.list_(pa.int32())),
            (NUM_EVENTS, pa.int32()),
        ]
    )


def increment_schema(user_id_type: str) -> pa.Schema:
    """What one day adds to a listener's history: a row of a shard without sessions, which depend on earlier plays.

    `num_events` counts the plays that no layer below has; a play that a layer below has is stored again if it was
    played further this time.
    """
    schema = sequence_schema(user_id_type)
    return schema.remove(schema.get_field_index(SESSION_INDEX))


def item_counts_schema() -> pa.Schema:
    """Distinct listeners per song up to a ds, for eligibility."""
    return pa.schema([(ITEM_INDEX, pa.int32()), (LISTENERS, pa.int64())])


@dataclass(frozen=True)
class TableSpec:
    """A Delta table of a workspace. `name` is also its folder; constraints are SQL conditions by name."""

    name: str
    schema: pa.Schema
    partition_by: tuple[str, ...] = ()
    constraints: Mapping[str, str] = field(default_factory=dict)


def vocabulary_table(item_id_type: str) -> TableSpec:
    """Append-only map from song to row of the item table."""
    columns = [
        pa.field(ITEM_INDEX, pa.int32(), nullable=False),
        pa.field(ITEM_ID, id_type(item_id_type), nullable=False),
        pa.field(FIRST_DS, pa.date32(), nullable=False),
    ]
    return TableSpec("vocabulary", pa.schema(columns))


def vocabulary_rows(item_id: pa.Array, ds: dt.date, *, after: int = 0) -> pa.Table:
    """Rows of the vocabulary for songs that get their index on a ds: in this order, the ones that follow `after`."""
    index = np.arange(after + 1, after + 1 + len(item_id), dtype=np.int32)
    columns = {ITEM_INDEX: index, ITEM_ID: item_id, FIRST_DS: pa.repeat(pa.scalar(ds, pa.date32()), len(item_id))}
    return pa.table(columns, schema=vocabulary_table(id_type_name(item_id.type)).schema)


def recommendations_table(user_id_type: str, item_id_type: str) -> TableSpec:
    """One row a listener and ds; `items` is in rank order. `user_id` null is the list for unknown listeners.

    propensity: of a song drawn to explore, the probability with which it was drawn; null for all others. reasons: the
    plays that pulled the song in most (`item_id` played on `ds`), weights in units of the score; null where nothing
    explains the list. segment: whose rules made the list, null for the default. short: the rules and the catalogue
    left fewer songs than were asked for.
    """
    song = id_type(item_id_type)
    reason = pa.struct([(ITEM_ID, song), (DS, pa.date32()), (WEIGHT, pa.float32())])
    item = pa.struct([(ITEM_ID, song), (SCORE, pa.float32()), (PROPENSITY, pa.float32()), (REASONS, pa.list_(reason))])
    columns = [
        pa.field(DS, pa.date32(), nullable=False),
        pa.field(BUCKET, pa.int32()),
        pa.field(USER_ID, id_type(user_id_type)),
        pa.field(ITEMS, pa.list_(item)),
        pa.field(SOURCE, pa.string()),
        pa.field(MODEL_VERSION, pa.string()),
        pa.field(STALE_DAYS, pa.int32()),
        pa.field(SEGMENT, pa.string()),
        pa.field(SHORT, pa.bool_()),
    ]
    limit = {"items_at_most": f"array_length({ITEMS}) <= {MAX_LIST_ITEMS}"}
    return TableSpec("recommendations", pa.schema(columns), partition_by=(DS,), constraints=limit)


_METRICS_COLUMNS = [
    pa.field(DS, pa.date32(), nullable=False),
    pa.field(MODEL_VERSION, pa.string()),  # an MLflow version, or a baseline's name ("popularity", "markov")
    pa.field(PROTOCOL, pa.string()),
    pa.field(SLICE, pa.string()),  # "all", "new", "light", "heavy"
    pa.field(METRIC, pa.string()),  # for example "ndcg_30"
    pa.field(VALUE, pa.float64()),
    pa.field(LISTENERS, pa.int64()),
]
METRICS_TABLE = TableSpec("metrics", pa.schema(_METRICS_COLUMNS))

_LIST_HITS_COLUMNS = [
    pa.field(DS, pa.date32(), nullable=False),  # of the lists and of the plays
    pa.field(SEGMENT, pa.string(), nullable=False),  # EVERY, DEFAULT_SEGMENT or a segment's name
    pa.field(SOURCE, pa.string(), nullable=False),  # EVERY, a value of `source`, or SOURCE_DEFAULT
    pa.field(METRIC, pa.string(), nullable=False),  # of `fuxi_beta.evaluation.served`
    pa.field(POSITION, pa.int32()),  # in the list, 1 is the first; null: of whole lists
    pa.field(VALUE, pa.float64(), nullable=False),
    pa.field(LISTENERS, pa.int64(), nullable=False),
    pa.field(MEASURED_DS, pa.date32(), nullable=False),  # the ds whose histories had the plays
]
LIST_HITS_TABLE = TableSpec("list_hits", pa.schema(_LIST_HITS_COLUMNS))

_LIST_QUALITY_COLUMNS = [
    pa.field(DS, pa.date32(), nullable=False),
    pa.field(SEGMENT, pa.string(), nullable=False),  # EVERY, DEFAULT_SEGMENT or a segment's name
    pa.field(METRIC, pa.string(), nullable=False),  # of `jobs.tables.list_quality`
    pa.field(VALUE, pa.float64(), nullable=False),
    pa.field(LISTENERS, pa.int64(), nullable=False),
]
LIST_QUALITY_TABLE = TableSpec("list_quality", pa.schema(_LIST_QUALITY_COLUMNS))

_QUALITY_COLUMNS = [
    pa.field(DS, pa.date32(), nullable=False),
    pa.field(METRIC, pa.string(), nullable=False),  # a statistic of `pipelines.logs.quality.DayStats`
    pa.field(VALUE, pa.float64()),
    pa.field(LOWER, pa.float64()),  # the bounds when the day was checked; null: none
    pa.field(UPPER, pa.float64()),
    pa.field(PASSED, pa.bool_()),  # null: no bound
    pa.field(ACCEPTED_OVERRIDE, pa.bool_(), nullable=False),  # out of bounds, accepted with --accept-quality
]
QUALITY_TABLE = TableSpec("quality", pa.schema(_QUALITY_COLUMNS))


def all_tables(user_id_type: str, item_id_type: str) -> tuple[TableSpec, ...]:
    """Every Delta table of a workspace with ids of these types."""
    lists = recommendations_table(user_id_type, item_id_type)
    return vocabulary_table(item_id_type), lists, METRICS_TABLE, QUALITY_TABLE, LIST_HITS_TABLE, LIST_QUALITY_TABLE


def parse_ds(text: str) -> dt.date:
    """An ISO date as given on a command line."""
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise InputError(f"ds {text!r} is not a date: write it as YYYY-MM-DD, for example 2026-03-02") from None
