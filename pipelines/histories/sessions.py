"""Sessions: runs of plays without a long pause. They are stored for analytics."""

import numpy as np


def session_index(timestamps: np.ndarray, offsets: np.ndarray, *, gap_s: int) -> np.ndarray:
    """Number of the session of each event, from 0 at a listener's oldest event.

    A session begins at a listener's first event, and where more than `gap_s` seconds have passed since the last one.
    timestamps: int64 [T], Unix seconds, ascending within a listener. offsets: int64 [U+1], listener u has the
    events offsets[u]:offsets[u+1]. Returns int32 [T].

    With a gap of 1,800 s, two listeners:

    ====  =====  =======
    user  time   session
    ====  =====  =======
    7     0      0
    7     1800   0        a pause of exactly the gap does not end the session
    7     3601   1        a second more does
    9     3700   0        every listener starts at 0
    9     99999  1
    ====  =====  =======

    >>> session_index(np.array([0, 1800, 3601, 3700, 99999]), np.array([0, 3, 5]), gap_s=1800)
    array([0, 0, 1, 0, 1], dtype=int32)
    """
    offsets = np.asarray(offsets, np.int64)
    if timestamps.size == 0:
        return np.zeros(0, np.int32)
    starts_session = np.zeros(timestamps.size, np.int64)
    starts_session[1:] = np.diff(timestamps) > gap_s
    first = offsets[:-1][offsets[:-1] < offsets[1:]]
    starts_session[first] = 0
    sessions = np.cumsum(starts_session)
    lengths = np.diff(offsets)
    return (sessions - np.repeat(sessions[first], lengths[lengths > 0])).astype(np.int32)
