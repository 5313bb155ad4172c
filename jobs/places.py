"""Files of a workspace without absolute paths, so that it can be moved, copied and restored.

A URI below the workspace, the play logs or the catalogue is stored with the name of that place in front:
`{workspace}/reports/...`, `{logs.path}/ds=2026-03-01/plays.parquet`. Where they are is said by the configuration.
"""

import re
from collections.abc import Mapping
from typing import Any

Places = Mapping[str, str]
"""The name of a place -> its URI, without a slash at the end. Of two that hold a URI the first counts."""


def portable(value: Any, places: Places) -> Any:
    """A JSON value in whose texts the names of places stand for their URIs.

    >>> portable({"uri": "/data/w/reports/x.html", "of": "/data/w2"}, {"workspace": "/data/w"})
    {'uri': '{workspace}/reports/x.html', 'of': '/data/w2'}
    """
    for name, uri in places.items():
        whole = re.compile(rf"(?<![\w.-]){re.escape(uri)}(?![\w.-])")
        value = _mapped(value, lambda text, whole=whole, name=name: whole.sub(f"{{{name}}}", text))
    return value


def located(value: Any, places: Places) -> Any:
    """The same value with the URIs where the places are now.

    >>> located(["{workspace}/reports/x.html", 1], {"workspace": "s3://bucket/w"})
    ['s3://bucket/w/reports/x.html', 1]
    """
    for name, uri in places.items():
        value = _mapped(value, lambda text, name=name, uri=uri: text.replace(f"{{{name}}}", uri))
    return value


def _mapped(value: Any, change: Any) -> Any:
    """A JSON value with a function applied to each of its texts, keys aside."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(content, change) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(content, change) for content in value]
    return value
