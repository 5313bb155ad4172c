"""Which columns of the logs are ours: guessed by their names, as services write them, and confirmed by their values."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from pipelines.logs.faults import quoted
from pipelines.logs.inspection.columns import Profile
from pipelines.schema import (
    DURATION_MS,
    EVENT_TYPE,
    ITEM_ID,
    OPTIONAL_COLUMNS,
    PLAY_MS,
    PLAY_SOURCE,
    REQUIRED_COLUMNS,
    TIMESTAMP,
    USER_ID,
)

_NAMES: dict[str, tuple[str, ...]] = {
    USER_ID: (
        "userid user uid userkey useruuid usermbid userhash listenerid listener accountid customerid memberid "
        "profileid subscriberid anonymousid anonid personid msno",
        "username account customer member profile login subscriber userlogin",
    ),
    ITEM_ID: (
        "itemid trackid songid item trackuri spotifytrackuri songuri trackkey songkey recordingid "
        "recordingmbid trackmbid contentid mediaid audioid musicid sngid traid isrc",
        "track song itemkey content recording recordingmsid trackmsid",
        "trackname songname title tracktitle songtitle mastermetadatatrackname",
    ),
    TIMESTAMP: (
        "timestamp ts time playedat listenedat playedtime listentime eventtime eventtimestamp eventts starttime "
        "startedat startts starttimestamp endtime endedat endts endtimestamp datetime createdat occurredat streamedat "
        "playdate timeplayed timestamputc utctime unixtime unixtimestamp epoch loggedat at",
        "date day servertime servertimestamp clienttime receivedat ingestedat",
    ),
    EVENT_TYPE: ("eventtype action event eventname actiontype interactiontype type activity listentype",),
    PLAY_MS: (
        "playms msplayed listenms playedms listenedms playtimems listentimems listeningtimems playdurationms "
        "durationplayedms timeplayedms playbackms streamedms playmillis",
    ),
    DURATION_MS: (
        "durationms tracklengthms lengthms trackdurationms songdurationms songlengthms itemdurationms trackms "
        "durationmillis lengthmillis",
        "tracklength trackduration songlength songduration itemduration length duration",
    ),
    PLAY_SOURCE: (
        "playsource isorganic organic isautoplay autoplay isshuffle shuffle shuffled playorigin playbackorigin "
        "streamsource listensource startreason reasonstart playreason",
    ),
}
"""Our column -> its names elsewhere, without case and marks, in groups: the likeliest first."""
_SECONDS = {
    PLAY_MS: "playedseconds secondsplayed playseconds listenseconds listenedseconds playtimeseconds listentimeseconds "
    "playsec playedsec playtime listeningtime listentime playduration playeds plays",
    DURATION_MS: "tracklengthseconds durationseconds lengthseconds trackdurationseconds songlengthseconds "
    "songdurationseconds durationsec durations lengths tracklengths trackdurations durationinseconds",
}
"""Names of columns in seconds, which nothing reads."""
_SHARES = "playedratio playedratiopct playedpct percentplayed completion completionrate playedshare"
_SHORTEST_MS = 5_000  # a song whose length is below is in seconds
_FEW = 0.01
"""Share of ids that may be no numbers where the others are: a header in the middle, "unknown"."""
_PLAYS = (
    "play played plays playing listen listened listening stream streamed scrobble playback trackplay trackplayed "
    "songplay songplayed playtrack playsong playcompleted nextsong"
)
_OTHERS = (
    "like unlike dislike love unlove favorite favourite pause paused resume resumed seek seeked stop stopped search "
    "click impression view share follow unfollow login logout rate download subscribe unsubscribe thumbsup thumbsdown "
    "addtoplaylist addtolibrary rolladvert advert ad home help error settings about"
)
"""Values of an event type, without case and marks, that are plays, and that are none."""


_UNCHOSEN = (
    "shuffle shuffled autoplay autoplayed autostart recommended recommendation recommendations recommender algorithmic "
    "algorithm radio station mix"
)
_ORGANIC = "isorganic organic"
"""Values of a play's source that no listener chose; and names of columns that say whether one did."""


@dataclass(frozen=True)
class Mapping:
    """The settings that make columns ours, and what is to be known of them."""

    columns: dict[str, str]  # our column -> the logs'; every one that was found
    user_id_type: str = "int64"
    item_id_type: str = "int64"
    play_events: tuple[str, ...] = ()  # () where there are no events
    other_events: tuple[str, ...] = ()
    unchosen_sources: tuple[str, ...] = ()  # () where the column is not mapped
    notes: tuple[str, ...] = ()
    problem: str = ""  # the first required column that was not found; "" if all were
    doubts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # our column -> others that would do as well


def normalized(name: str) -> str:
    """A name without case, blanks and marks.

    >>> normalized("Track.ID"), normalized(" ms_played")
    ('trackid', 'msplayed')
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())


def guess(profiles: Sequence[Profile], *, files: int, given: dict[str, str], events: Collection[str] = ()) -> Mapping:
    """The mapping of the columns of `files` sampled files.

    given: our column -> the logs', not to be guessed. events: types of events that the settings know.
    """
    by_name = {profile.name: profile for profile in profiles}
    columns, doubts, notes = dict(given), {}, []
    for name in (TIMESTAMP, USER_ID, ITEM_ID, EVENT_TYPE, PLAY_MS, DURATION_MS, PLAY_SOURCE):
        if name in given:
            continue
        taken = set(columns.values())
        found = [profile for profile in _candidates(name, profiles) if profile.name not in taken]
        if name in OPTIONAL_COLUMNS:
            found, more = _usable(name, found, files)
            notes += more
        if found:
            columns[name] = found[0].name
            doubts[name] = tuple(other.name for other in found[1:])
    notes += _notes_of_choice(columns, doubts, by_name, given)
    notes += [note for profile in profiles if (note := _not_read(profile, columns))]
    types = {name: _id_type(by_name.get(columns.get(name, ""))) for name in (USER_ID, ITEM_ID)}
    notes += [note for name in types if (note := _note_of_type(name, by_name.get(columns.get(name, "")), types[name]))]
    plays, others, more = _events(by_name.get(columns.get(EVENT_TYPE, "")), events)
    notes += [*more, *_note_of_zone(by_name.get(columns.get(TIMESTAMP, "")))]
    unchosen = _unchosen(by_name.get(columns.get(PLAY_SOURCE, "")))
    notes += _note_of_source(by_name.get(columns.get(PLAY_SOURCE, "")), unchosen)
    return Mapping(
        columns,
        user_id_type=types[USER_ID],
        item_id_type=types[ITEM_ID],
        play_events=plays,
        other_events=others,
        unchosen_sources=unchosen,
        notes=tuple(notes),
        problem=_missing(columns, profiles),
        doubts={name: others for name, others in doubts.items() if others},
    )


def _candidates(name: str, profiles: Sequence[Profile]) -> list[Profile]:
    """Columns that may be ours: of the likeliest group of names, and with values of its kind; the likeliest first."""
    ranked = []
    for profile in profiles:
        rank = _rank(name, profile.name)
        if rank is not None and _confirmed(name, profile):
            ranked.append((*rank, round(profile.null_share, 1), profile.name, profile))
    ranked.sort(key=lambda entry: entry[:-1])
    best = [entry[-1] for entry in ranked if entry[0] == ranked[0][0]]
    return best[:1] if best and best[0].name == name and name != TIMESTAMP else best


def _rank(name: str, column: str) -> tuple[int, int, int] | None:
    """How well a column's name fits: its group, whether it is ours, and its place in the group. None: not at all."""
    if column == name:
        return 0, 0, 0
    parts = column.split(".")
    forms = {normalized("".join(parts[-count:])) for count in range(1, len(parts) + 1)}
    for group, names in enumerate(_NAMES[name]):
        places = [place for place, known in enumerate(names.split()) if known in forms]
        if places:
            return group, 1, places[0]
    return None


def _confirmed(name: str, profile: Profile) -> bool:
    """Whether a column's values are of the kind of one of ours."""
    if name == PLAY_SOURCE:
        return bool(_unchosen(profile))
    if profile.nested or not profile.distinct:
        return False
    if name == TIMESTAMP:
        return profile.as_time >= 0.5
    if name in (PLAY_MS, DURATION_MS):
        return profile.as_length >= 0.9
    if name == EVENT_TYPE:
        return bool(profile.counts) and (profile.name == EVENT_TYPE or any(map(_is_play, profile.counts)))
    is_a_time = profile.as_time >= 0.9 and profile.as_id < 1
    return not is_a_time


def _is_play(value: str) -> bool:
    return normalized(value) in _PLAYS.split()


def _usable(name: str, found: list[Profile], files: int) -> tuple[list[Profile], list[str]]:
    """Optional columns that can be mapped, and why others cannot."""
    usable, notes = [], []
    for profile in found:
        if profile.files < files and profile.name != name:
            notes.append(
                f"{profile.name} may be {name}, but only {profile.files} of {files} files have it: it is left out"
            )
        elif name == DURATION_MS and 0 < profile.middle < _SHORTEST_MS:
            notes.append(f"{profile.name} looks like seconds (half are below {profile.middle:g}): {_WRITE_MS}")
            usable += [profile] if profile.name == name else []
        elif normalized(profile.name.split(".")[-1]) == "duration" and not profile.name.lower().startswith("track"):
            notes.append(
                f"{profile.name} may be the length of the song ({DURATION_MS}) or of the play ({PLAY_MS}): "
                "logs.columns has to say it, it is left out here"
            )
        else:
            usable.append(profile)
    return usable, notes


_WRITE_MS = (
    "lengths are read in milliseconds alone; write them so, or leave them: plays then count as played to the end"
)


def _not_read(profile: Profile, columns: dict[str, str]) -> str:
    """A line on a column that tells how much was played, in a unit that nothing reads."""
    last = normalized(profile.name.split(".")[-1])
    if profile.name in columns.values() or profile.nested or not profile.as_length:
        return ""
    for name, names in _SECONDS.items():
        if last in names.split() and name not in columns:
            return f"{profile.name} may be {name} in seconds: {_WRITE_MS}"
    if last in _SHARES.split() and PLAY_MS not in columns:
        return f"{profile.name} is a share of the song: what is read is {PLAY_MS} and {DURATION_MS}; {_WRITE_MS}"
    return ""


def _notes_of_choice(
    columns: dict[str, str], doubts: dict[str, tuple[str, ...]], by_name: dict[str, Profile], given: dict[str, str]
) -> list[str]:
    """What else each of our columns could be, and what speaks against the choice."""
    notes = []
    for name, others in doubts.items():
        if others:
            notes.append(f"AMBIGUOUS: {name} is taken from {columns[name]}; {' and '.join(others)} would do as well")
    item = columns.get(ITEM_ID, "")
    rank = _rank(ITEM_ID, item)
    if ITEM_ID not in given and rank and rank[0] == len(_NAMES[ITEM_ID]) - 1:
        notes.append(
            f"{item} holds titles and is taken as {ITEM_ID}, as there are no ids: songs of one title become one song"
        )
    for name in (USER_ID, ITEM_ID, TIMESTAMP):
        profile = by_name.get(columns.get(name, ""))
        if profile and profile.null_share >= 0.01:
            notes.append(
                f"{_named(name, profile)} has no value in {profile.null_share:.0%} of the rows, which are rejected"
            )
    return notes


def _named(name: str, profile: Profile) -> str:
    return name if profile.name == name else f"{profile.name} ({name})"


def _id_type(profile: Profile | None) -> str:
    """Text where a value would be changed as a whole number, or more than a few are none."""
    if profile is None or not profile.distinct:
        return "int64"
    return "string" if profile.lossy or profile.as_id < 1 - _FEW else "int64"


def _note_of_type(name: str, profile: Profile | None, type_: str) -> str:
    """A line on ids that look like numbers and are not the same as numbers."""
    if profile is None or not profile.digits:
        return ""
    shown = _named(name, profile)
    if type_ == "int64":
        return (
            f"{1 - profile.as_id:.2%} of the values of {shown} are no whole numbers, for example "
            f"{quoted(profile.no_number)}: their rows are rejected, unless sequences.{name}_type is string"
            if profile.no_number
            else ""
        )
    share = "all" if profile.digits == 1 else f"{profile.digits:.0%} of the"
    what = (
        f"{quoted(profile.lossy)} would be lost or changed as a whole number of 64 bits"
        if profile.lossy
        else f"{quoted(profile.no_number)} does not"
    )
    return f"{share} values of {shown} look like numbers, but {what}: they are read as text"


def _events(profile: Profile | None, known: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    """The values of event_type that are plays, those that are known and none, and a line on the rest."""
    if profile is None:
        return (), (), []
    if not profile.distinct:
        return (), (), [f"{profile.name} has no value in any row, which are rejected: take the column out of the logs"]
    ordered = sorted(profile.counts, key=lambda value: -profile.counts[value])
    plays = tuple(value for value in ordered if _is_play(value))
    others = tuple(value for value in ordered if normalized(value) in _OTHERS.split())
    rest = [
        f"{quoted(value)} ({profile.counts[value]:,} rows)"
        for value in ordered
        if value not in {*plays, *others, *known}
    ]
    if not rest:
        return plays, others, []
    shown = ", ".join(rest[:5]) + (f" and {len(rest) - 5} more" if len(rest) > 5 else "")
    return (
        plays,
        others,
        [
            f"{shown} of {profile.name} is neither known as a play nor as another event: such rows are rejected until "
            "logs.play_events or logs.other_events names it"
        ],
    )


def _unchosen(profile: Profile | None) -> tuple[str, ...]:
    """The values of a play's source, or of a column that says whether it was chosen, that mean that nobody chose it."""
    if profile is None or any(value[:1] in ("[", "{") for value in profile.counts):
        return ()
    column = normalized(profile.name.split(".")[-1])
    truth = {"false", "0", "0.0"} if column in _ORGANIC.split() else {"true", "1", "1.0"}
    told = set(map(str.lower, profile.counts)) <= {"true", "false", "0", "1", "0.0", "1.0"}
    values = [v for v in profile.counts if (v.lower() in truth if told else normalized(v) in _UNCHOSEN.split())]
    return tuple(sorted(values))


def _note_of_source(profile: Profile | None, unchosen: tuple[str, ...]) -> list[str]:
    if profile is None or not unchosen:
        return []
    rows = sum(profile.counts[value] for value in unchosen)
    shown = " and ".join(quoted(value) for value in unchosen)
    return [
        f"plays whose {profile.name} is {shown} ({rows / max(profile.rows, 1):.0%} of the rows) count as not chosen by "
        "the listener; train.unchosen_weight below 1 lets training learn less from them"
    ]


def _note_of_zone(profile: Profile | None) -> list[str]:
    if profile is None or not profile.zoneless:
        return []
    return [
        f"times of {profile.name} name no zone (for example {quoted(profile.zoneless)}) and are read as UTC: if they "
        "are local, write them with their offset; sequences.timezone only says where a day begins and when lists are "
        "asked for"
    ]


def _missing(columns: dict[str, str], profiles: Sequence[Profile]) -> str:
    """The line on required columns that were not found; "" if all were."""
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if not missing:
        return ""
    free = [profile for profile in profiles if profile.name not in columns.values() and not profile.nested]
    shown = ", ".join(f"{p.name} ({quoted(p.example)})" for p in free[:6]) + (" ..." if len(free) > 6 else "")
    known = "".join(f"{name}: {column}, " for name, column in columns.items() if column != name)
    wanted = ", ".join(f"{name}: ..." for name in missing)
    for profile in free:
        if TIMESTAMP in missing and _rank(TIMESTAMP, profile.name) and not profile.as_time:
            shown += f"; the values of {profile.name} are no times between 2000 and the last landing day in any unit"
    what = {USER_ID: "the listener", ITEM_ID: "the song", TIMESTAMP: "the time"}
    return (
        f"no column looks like {' or '.join(what[name] for name in missing)} ({', '.join(missing)}) among "
        f"{shown or 'those that are left'}: say which with --set 'logs.columns={{{known}{wanted}}}', or add it to the "
        "logs"
    )
