"""What a model version holds: the export, the vocabulary of its training, the code that reads both, a signature.

Nothing is pickled: `pyfunc_model.py` is stored as text with the packages it needs, so a version is scored by
the code it was trained with.
"""

import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from jobs.day import Day
from jobs.serving.catalogue import read_vocabulary
from jobs.serving.day_rules import recent_popularity
from jobs.serving.song_facts import song_facts
from pipelines import digests, storage
from pipelines.schema import ITEM_ID

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.models.model import ModelInfo
    from torch import Tensor

    from fuxi_beta.training.checkpoint import TrainedModel

_REQUIREMENTS = ("torch", "numpy", "pyarrow", "safetensors", "xxhash", "mlflow")
_EXAMPLE_SONGS = 5
FROM_NOTHING = "none"
"""Value of the tag `warm_started_from` of a full retrain."""


def log_pyfunc(day: Day, folder: str, *, scratch: str, mlflow_run_id: str) -> "tuple[ModelInfo, dict[str, str]]":
    """Log an export as a pyfunc to a run. Returns MLflow's model info and the tags its version gets.

    folder: local export. scratch: a local folder to build in. MLflow already points at this deployment.
    """
    import mlflow
    from safetensors.torch import save_file

    import fuxi_beta
    import jobs
    import pipelines
    from fuxi_beta.training.checkpoint import load_export

    trained = load_export(folder)
    songs_file = str(Path(scratch, "vocabulary.parquet"))
    manifest = day.manifest(day.ds) if day.ds in day.workspace.days_with_sequences() else None
    songs = read_vocabulary(day, of=manifest)[: trained.vocabulary_size]
    storage.write_table(songs_file, songs)
    code = [str(Path(str(package.__file__)).parent) for package in (fuxi_beta, jobs, pipelines)]
    signature, example = _signature(day, songs, trained.data_end)
    facts_file = str(Path(scratch, "song_facts.safetensors"))
    facts = song_facts(day, songs[ITEM_ID].combine_chunks(), popularity=_popularity(day, trained))
    save_file(facts.tensors(), facts_file)
    served = {
        "timezone": day.workspace.spec.timezone,
        "request_hour": trained.request_hour,
        "rules": day.config.rules.model_dump(mode="json", exclude={"song_lists", "feedback", "listeners"}),
    }
    with mlflow.start_run(run_id=mlflow_run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"export": folder, "vocabulary": songs_file, "song_facts": facts_file},
            code_paths=code,
            signature=signature,
            model_config=served,
            input_example=example,
            # without local build tags such as +cpu
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in _REQUIREMENTS],
        )
    _note_digests(info)
    protocol = trained.train_config.protocol
    parent = trained.metadata.get("warm_started_from") or FROM_NOTHING
    tags = {"ds": trained.ds, "data_end": str(trained.data_end), "protocol": protocol, "warm_started_from": parent}
    return info, tags


def _note_digests(info: "ModelInfo") -> None:
    """Add the digests of a logged model's files to them."""
    import mlflow

    with tempfile.TemporaryDirectory() as scratch:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=info.model_uri)  # where it is, if it is on this disk
        digests.write_digests(folder, to=scratch, without={"registered_model_meta"})  # MLflow writes it at downloads
        mlflow.MlflowClient().log_model_artifact(info.model_id, str(Path(scratch, digests.DIGESTS_FILE)))


def _popularity(day: Day, trained: "TrainedModel") -> "Tensor | None":
    """Distinct listeners of each song, which dampening needs and no other rule. float32 [V]."""
    config = day.config.rules
    if not any(config.of(segment).popularity_dampening for segment in ("", *config.segments)):
        return None
    manifest = day.manifest(day.ds)
    return recent_popularity(day, manifest, trained.train_config).listeners[: trained.vocabulary_size + 1]


def _signature(day: Day, songs: pa.Table, data_end: int) -> "tuple[ModelSignature, pd.DataFrame]":
    """The columns that the pyfunc takes and returns, and an example: a listener who played five songs an hour apart."""
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    item = DataType.long if day.workspace.spec.item_id_type == "int64" else DataType.string
    lists = [ColSpec(Array(item), "item_ids"), ColSpec(Array(DataType.long), "timestamps")]
    numbers = [ColSpec(DataType.long, name, required=False) for name in ("request_time", "k")]
    known = [ColSpec(Array(item), name, required=False) for name in ("listed_item_ids", "disliked_item_ids")]
    known.append(ColSpec(DataType.string, "segment", required=False))
    inputs = Schema([*lists, *numbers, *known])
    outputs = Schema([ColSpec(Array(item), "items"), ColSpec(Array(DataType.float), "scores")])
    played = songs[ITEM_ID].to_pylist()[:_EXAMPLE_SONGS]
    times = [data_end - 3600 * (len(played) - i) for i in range(len(played))]
    request_time = day.calendar.request_time(day.ds)
    example = {"item_ids": [played], "timestamps": [times], "request_time": [request_time], "k": [10]}
    return ModelSignature(inputs=inputs, outputs=outputs), pd.DataFrame(example)
