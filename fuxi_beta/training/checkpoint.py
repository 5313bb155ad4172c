"""A trained model as a folder: `config.json` and safetensors, nothing that runs code when it is read.

Shapes: `B` listeners, `V` rows of the item table, `D` width, `K` list length.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import override

from fuxi_beta import models
from fuxi_beta.config import Mode, ModelConfig, TrainConfig, learn_from_before
from fuxi_beta.data.batches import Batch, cuts_by_tokens, inference_batch
from fuxi_beta.data.side import SideVocabulary
from fuxi_beta.models.base import SequenceModel, l2_normalise
from fuxi_beta.models.reasons import Trace, strongest_plays
from fuxi_beta.ops import TopKSearch
from fuxi_beta.recommender import Candidates, Pairs, Queries, Reasons, Recommender, pairs_of_rows
from pipelines import digests, storage
from pipelines.calendar import REQUEST_HOUR, Calendar
from pipelines.errors import InputError
from pipelines.histories.histories import Histories

EXPORT_FORMAT = 1
CONFIG_FILE, MODEL_FILE, TRAIN_STATE_FILE = "config.json", "model.safetensors", "train_state.safetensors"
SIDE_VOCABULARY_FILE = "side_vocabulary.parquet"
_NETWORK, _LISTED_FROM = "network.", "listed_from"
CACHED_NUMBERS = 1 << 18
"""Tokens times their width that are encoded at once on a CPU: what a layer hands to the next stays in the cache."""

Config = TypeVar("Config", ModelConfig, TrainConfig)


@dataclass(eq=False)
class TrainedModel(Recommender):
    """Everything needed to make lists: the network, its item table, and what it was trained on."""

    model: SequenceModel
    model_config: ModelConfig
    train_config: TrainConfig
    item_vectors: Tensor  # [V, D], raw; row 0 is padding; V >= vocabulary_size + 1 (capacity rows)
    candidates: Tensor  # bool [V], songs that were trained and are eligible
    vocabulary_size: int  # highest item index it knows
    ds: str  # ISO date of the serving day it was trained for
    data_end: int  # Unix second; every target it learned from is before
    metadata: dict[str, Any] = field(default_factory=dict)
    request_hour: int = REQUEST_HOUR  # hour of the day for which it learned to make lists
    listed_from: Tensor | None = None  # int64 [V], Unix second from which each song may be listed, by side information

    def __post_init__(self) -> None:
        rows, dim = self.item_vectors.shape
        if rows < self.vocabulary_size + 1 or dim != self.model_config.dim or self.candidates.shape != (rows,):
            raise ValueError(
                f"item_vectors {tuple(self.item_vectors.shape)} and candidates {tuple(self.candidates.shape)} do not "
                f"fit a vocabulary of {self.vocabulary_size} songs of width {self.model_config.dim}"
            )
        self._searches: dict[Candidates | None, TopKSearch] = {}

    @property
    def mode(self) -> Mode:
        """What it was trained for."""
        return self.train_config.mode

    @override
    def as_of(self, time: int) -> "TrainedModel":
        """The same model with the candidates of a time (Unix seconds): new songs are some from when they appear.

        Without side information a model's candidates are always the same.
        """
        if self.listed_from is None:
            return self
        return dataclasses.replace(self, candidates=self.listed_from <= time)

    def to(self, device: torch.device | str) -> "TrainedModel":
        """The same model with its numbers on a device, where it then makes its lists; its network is moved, not copied.

        Batches may stay on the host, and lists come back there.
        """
        return dataclasses.replace(
            self,
            model=self.model.to(device),
            item_vectors=self.item_vectors.to(device),
            candidates=self.candidates.to(device),
            listed_from=None if self.listed_from is None else self.listed_from.to(device),
        )

    def calendar(self, timezone: str) -> Calendar:
        """The calendar by which it reads histories: that of its training, whatever hour lists are requested at."""
        return Calendar(timezone, self.request_hour)

    def batch(self, histories: Histories, *, request_time: int | np.ndarray, timezone: str = "UTC") -> Batch:
        """What it reads of listeners to make their lists for a time. Arguments as in `inference_batch`."""
        return inference_batch(
            histories,
            request_time=request_time,
            model=self.model_config,
            train=self.train_config,
            calendar=self.calendar(timezone),
            vocabulary_size=self.vocabulary_size,
        )

    @override
    def queries(self, batch: Batch) -> "EncodedBatch":
        """Run the network; scores are cosines. A listener without usable history has an empty list."""
        return EncodedBatch(self, batch)

    @torch.inference_mode()
    def scores(self, batch: Batch) -> Tensor:
        """The score of every row of the item table. float32 [B, V], in host memory."""
        return (self.encode(batch.to(self.item_vectors.device)) @ self.songs().table.t()).float().cpu()

    def encode(self, batch: Batch) -> Tensor:
        """The vector of each listener, L2-normalised. batch: on this model's device. [B, D]."""
        parts = self.in_cache(batch)
        return torch.cat([self.model.encode_last(self._tokens(part), part) for part in parts])

    def trace(self, batch: Batch) -> Trace | None:
        """How it comes to the vector of each listener; None if the model does not say. batch: on its device."""
        return self.model.trace_last(self._tokens(batch), batch)

    def in_cache(self, batch: Batch) -> list[Batch]:
        """The batch in parts of consecutive listeners that are encoded at once; on a GPU it is one part."""
        most = max(CACHED_NUMBERS // self.model_config.dim, 1024)
        if self.item_vectors.is_cuda or len(batch.item_index) <= most:
            return [batch]
        return [batch.slice(start, stop) for start, stop in cuts_by_tokens(batch.lengths.numpy(), most)]

    def _tokens(self, batch: Batch) -> Tensor:
        return self.item_vectors.index_select(0, batch.item_index)

    def songs(self, chosen: Candidates | None = None) -> TopKSearch:
        """The search of its candidates, or of a choice of them; prepared once for each choice.

        A penalty is one more column of the table.
        """
        if chosen not in self._searches:
            table = l2_normalise(self.item_vectors) if chosen is None else self.songs().table
            candidates = self.candidates if chosen is None else chosen.among(self.candidates)
            if chosen is not None and chosen.penalty is not None:
                column = table.new_zeros(len(table), 1)
                size = min(len(table), len(chosen.penalty))
                column[:size, 0] = -chosen.penalty[:size].to(table)
                table = torch.cat([table, column], dim=1)
            self._searches.setdefault(chosen, TopKSearch(table, candidates))
        return self._searches[chosen]


class EncodedBatch(Queries):
    """The vectors of a batch's listeners on the model's device."""

    def __init__(self, trained: TrainedModel, batch: Batch) -> None:
        self.trained = trained
        self.batch = batch.to(trained.item_vectors.device)
        with torch.inference_mode():
            self._parts = [(part, trained.trace(part)) for part in trained.in_cache(self.batch)]
            traced = [trace.vectors for _, trace in self._parts if trace is not None]
            self.vectors = torch.cat(traced) if traced else trained.encode(self.batch)  # [B, D]

    @override
    @torch.inference_mode()
    def rank(
        self, k: int, *, excluded: Pairs | None = None, candidates: Candidates | None = None, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        device, every = self.vectors.device, torch.arange(self.batch.num_listeners, device=self.vectors.device)
        wanted = every if rows is None else rows.to(device)
        items = torch.zeros(len(wanted), k, dtype=torch.int64)
        scores = torch.full(items.shape, -torch.inf)
        known = (self.batch.lengths[wanted] > 0).nonzero().squeeze(1)  # who has no vector is not searched for
        some = wanted[known]
        if excluded is not None:
            excluded = excluded[0].to(device), excluded[1].to(device)
            excluded = excluded if torch.equal(some, every) else pairs_of_rows(excluded, some)
        vectors = self.vectors[some]
        if candidates is not None and candidates.penalty is not None:
            vectors = torch.cat([vectors, vectors.new_ones(len(vectors), 1)], dim=1)
        found = self.trained.songs(candidates).top_k(vectors, k=k, seen=excluded)
        items[known.cpu()], scores[known.cpu()] = found[0].cpu(), found[1].cpu()
        return items, scores

    @override
    @torch.inference_mode()
    def reasons(self, items: Tensor, n: int) -> Reasons | None:
        """See `Queries.reasons`. What a penalty takes off a score is in no part."""
        table, found, rows, tokens = self.trained.songs().table, [], 0, 0
        items = items.to(table.device)
        for part, trace in self._parts:
            if trace is None:
                return None
            of_part = strongest_plays(trace, part, table, items[rows : rows + part.num_listeners], n)
            found.append((of_part.token + tokens * (of_part.token >= 0), of_part.weight, of_part.remainder))
            rows, tokens = rows + part.num_listeners, tokens + len(part.item_index)
        return Reasons(*(torch.cat(parts).cpu() for parts in zip(*found, strict=True)))


def save_export(
    folder: str,
    trained: TrainedModel,
    *,
    train_state: dict[str, Tensor] | None = None,
    side_vocabulary: SideVocabulary | None = None,
) -> None:
    """Write an export to a local folder, which is created, and the digests of its files.

    train_state: named tensors a warm start needs (optimizer state). side_vocabulary: what the rows of the table of side
    information stand for. Both are kept in files of their own, since serving does not read them.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {_NETWORK + name: tensor for name, tensor in trained.model.state_dict().items()}
    tensors |= {"item_vectors": trained.item_vectors, "candidates": trained.candidates}
    if trained.listed_from is not None:
        tensors[_LISTED_FROM] = trained.listed_from
    save_file(_plain(tensors), path / MODEL_FILE)
    if train_state is not None:
        save_file(_plain(train_state), path / TRAIN_STATE_FILE)
    if side_vocabulary is not None:
        storage.write_table(str(path.absolute() / SIDE_VOCABULARY_FILE), side_vocabulary.pairs)
    content = {
        "format": EXPORT_FORMAT,
        "model": dataclasses.asdict(trained.model_config),
        "train": dataclasses.asdict(trained.train_config),
        "vocabulary_size": trained.vocabulary_size,
        "ds": trained.ds,
        "data_end": trained.data_end,
        "metadata": trained.metadata,
        "request_hour": trained.request_hour,
    }
    storage.write_json(str(path.absolute() / CONFIG_FILE), content)
    digests.write_digests(str(path.absolute()))


def load_export(folder: str) -> TrainedModel:
    """Read an export from a local folder. A missing, foreign or damaged one is an InputError of one line.

    Its files are compared with their digests; exports of earlier releases have none.
    """
    _check_files(folder, CONFIG_FILE, MODEL_FILE)
    content = _read_config(Path(folder) / CONFIG_FILE)
    file = Path(folder) / MODEL_FILE
    model_config, train_config = content["model"], content["train"]
    tensors = _read_tensors(file)
    model = _network(file, model_config)
    wanted = {_NETWORK + name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wanted |= {"item_vectors": (None, model_config.dim), "candidates": (None,)}
    wanted |= {_LISTED_FROM: (None,)} if _LISTED_FROM in tensors else {}
    _check_tensors(file, tensors, wanted)
    model.load_state_dict({name: tensors[_NETWORK + name] for name in model.state_dict()})
    try:
        return TrainedModel(
            model=model.eval(),
            model_config=model_config,
            train_config=train_config,
            item_vectors=tensors["item_vectors"],
            candidates=tensors["candidates"],
            listed_from=tensors.get(_LISTED_FROM),
            **{key: content[key] for key in ("vocabulary_size", "ds", "data_end", "metadata", "request_hour")},
        )
    except ValueError as error:
        raise InputError(f"{file}: {error}; export the model again") from None


def load_train_state(folder: str) -> dict[str, Tensor]:
    """The named tensors saved for a warm start. InputError if the export has none or the file is damaged."""
    _check_files(folder, TRAIN_STATE_FILE)
    return _read_tensors(Path(folder) / TRAIN_STATE_FILE)


def load_side_vocabulary(folder: str) -> SideVocabulary | None:
    """What the rows of the side table of an export stand for; None for a model without side information.

    folder: a local folder or a URI. Raises InputError if the file cannot be read.
    """
    _check_files(folder, SIDE_VOCABULARY_FILE)
    uri = storage.join(folder, SIDE_VOCABULARY_FILE)
    return SideVocabulary(storage.read_table(uri)) if storage.exists(uri) else None


def _check_files(folder: str, *names: str) -> None:
    """InputError that names a file of an export that is missing or not as it was written."""
    digests.check_folder(storage.absolute(folder), only=names, remedy="export the model again: `fuxi train --force`")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors takes them: on the CPU, contiguous, no two of one memory. Copies are made only for that."""
    plain: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        ready = tensor.detach().cpu().contiguous()
        memory = ready.untyped_storage().data_ptr()
        plain[name] = ready.clone() if memory in taken else ready
        taken.add(memory)
    return plain


def _network(file: Path, config: ModelConfig) -> SequenceModel:
    try:
        return models.build(config)
    except ValueError as error:
        raise InputError(f"{file}: {error}; export the model again") from None


def _read_config(file: Path) -> dict[str, Any]:
    try:
        content = storage.read_json(str(file.absolute()))
    except FileNotFoundError:
        raise InputError(f"{file} is not there: name the folder of an exported model") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != EXPORT_FORMAT:
        raise InputError(
            f"{file}: export format {found!r} is not {EXPORT_FORMAT}: export the model again with this release"
        )
    missing = {"model", "train", "vocabulary_size", "ds", "data_end", "metadata"} - content.keys()
    if missing:
        raise InputError(f"{file} lacks {', '.join(sorted(missing))}: export the model again")
    return (
        {"request_hour": REQUEST_HOUR}
        | content
        | {  # exports of earlier releases do not name it
            "model": _config(file, "model", ModelConfig, content["model"]),
            "train": _config(file, "train", TrainConfig, _with_learn_from(content["train"])),
        }
    )


def _with_learn_from(train: dict[str, Any]) -> dict[str, Any]:
    """The section with `learn_from`, which exports of earlier releases lack."""
    return {"learn_from": learn_from_before(train.get("mode", TrainConfig.mode))} | train


def _config(file: Path, section: str, kind: type[Config], content: dict[str, Any]) -> Config:
    unknown = content.keys() - {item.name for item in dataclasses.fields(kind)}
    if unknown:
        raise InputError(f"{file}: {section}.{sorted(unknown)[0]} is unknown to this release: use the one it came from")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: {section} is not valid ({error}): export the model again") from None


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except FileNotFoundError:
        raise InputError(f"{file} is not there: export the model again") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors ({error}): export the model again") from None


def _check_tensors(file: Path, tensors: dict[str, Tensor], wanted: dict[str, tuple[int | None, ...]]) -> None:
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            raise InputError(f"{file} lacks the tensor {name}: export the model again")
        if name not in wanted:
            raise InputError(f"{file} has the tensor {name}, unknown to this release: use the one it came from")
        shape = tuple(tensors[name].shape)
        fits = len(shape) == len(wanted[name]) and all(
            want in (None, size) for want, size in zip(wanted[name], shape, strict=True)
        )
        if not fits:
            raise InputError(f"{file}: {name} has shape {shape}, expected {wanted[name]}: export the model again")
