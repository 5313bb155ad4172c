"""Events of OpenLineage in a file, rebuilt with its client's classes, whose validators run then."""

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

from openlineage.client import event_v2
from openlineage.client import generated as classes
from openlineage.client.facet_v2 import parent_run, tags_run


def read_events(file: Path) -> list[Any]:
    """Every event of a file with a line each."""
    return [_event(json.loads(line)) for line in file.read_text().splitlines()]


def _event(told: dict[str, Any]) -> event_v2.RunEvent:
    def datasets(kind: Any, facets: str, values: list[dict[str, Any]]) -> list[Any]:
        return [kind(**value | {facets: _facets(value.get(facets, {}))}) for value in values]

    assert told.pop("schemaURL") == event_v2.RunEvent._get_schema()
    return event_v2.RunEvent(
        **told
        | {
            "eventType": event_v2.RunState(told["eventType"]),
            "run": event_v2.Run(**told["run"] | {"facets": _facets(told["run"]["facets"])}),
            "job": event_v2.Job(**told["job"] | {"facets": _facets(told["job"]["facets"])}),
            "inputs": datasets(event_v2.InputDataset, "inputFacets", told.get("inputs", [])),
            "outputs": datasets(event_v2.OutputDataset, "outputFacets", told.get("outputs", [])),
        }
    )


def _facets(told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: _facet(dict(values)) for name, values in told.items()}


def _facet(values: dict[str, Any]) -> Any:
    schema, producer = values.pop("_schemaURL"), values.pop("_producer")
    kind = _KINDS[schema.rpartition("/")[2]]
    assert schema == kind._get_schema() and producer.startswith(("urn:fuxi-daily:", "https://github.com/OpenLineage/"))
    if kind is parent_run.ParentRunFacet:
        values = {"run": parent_run.Run(**values["run"]), "job": parent_run.Job(**values["job"])}
    if kind is tags_run.TagsRunFacet:
        values = {"tags": [tags_run.TagsRunFacetFields(**tag) for tag in values["tags"]]}
    return kind(**values)


_KINDS = {
    name: kind
    for found in pkgutil.iter_modules(classes.__path__)
    for name, kind in vars(importlib.import_module(f"{classes.__name__}.{found.name}")).items()
    if name.endswith("Facet")
}
