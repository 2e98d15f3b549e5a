"""The cases of a benchmark: a method, a memory size, and what is measured of it."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from unimem.bench.bank import filled_bank, slots_held
from unimem.bench.end_to_end import measure_document, measure_training
from unimem.bench.inputs import Clustered, Gaussian, Source, draw_rows
from unimem.bench.retrieval import measure_search
from unimem.bench.settings import CLUSTERED, RANDOM, BenchSettings, What
from unimem.bench.shapes import SHAPES, configured
from unimem.bench.step import make_step, measure_step
from unimem.bench.timer import Clock
from unimem.config import Config
from unimem.memory.bank import MemoryBank
from unimem.model.attach import attach, attached
from unimem.model.load import load_model
from unimem.model.supported import head_size
from unimem.training.footprint import state_bytes_per_row

GB = 1e9
VANILLA = "vanilla"
DOCUMENT_METHOD = "memorizing_transformer"
"""Whose search, in one layer, reads a document."""
DOCUMENT_SIZE = 10240
"""Slots of its memory."""


class TooLargeError(ValueError):
    """A case whose memory alone is larger than the settings allow."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement."""

    what: What
    method: str
    size: int

    @property
    def label(self) -> str:
        """The case in words."""
        return f"{self.what} {self.method}, {self.size} slots"


def cases(settings: BenchSettings) -> Iterator[Case]:
    """List what the settings ask for; without memory there is one size."""
    for what in settings.kinds():
        if what == "document":
            yield Case(what=what, method=DOCUMENT_METHOD, size=DOCUMENT_SIZE)
            continue
        for method in settings.methods:
            for size in (0,) if method == VANILLA else settings.sizes:
                yield Case(what=what, method=method, size=size)


@dataclass(kw_only=True)
class Bench:
    """Measures cases of one shape on one device.

    The two models, with memory and without, are made once: each case attaches its memory anew.
    Raises ValueError if the keys of a run cannot be had.
    """

    settings: BenchSettings
    device: torch.device

    def __post_init__(self) -> None:
        settings = self.settings
        self.clock = Clock(device=self.device, threads=settings.threads)
        self.source = key_source(settings.keys)
        self.shape = SHAPES[settings.shape]
        made = load_model(self.shape.model(), self.shape.vocabulary, settings.seed)
        moved = cast(torch.nn.Module, made).to(self.device, getattr(torch, settings.dtype))
        self.mine = cast(PreTrainedModel, moved)
        self.vanilla = self._configured(VANILLA, 0)
        self.plain = self._attach(copy.deepcopy(self.mine), self.vanilla)

    def measure(self, case: Case) -> dict[str, Any]:
        """Measure a case and give its record.

        Raises `TooLargeError`, and ValueError for a memory that cannot be had.
        """
        document = case.what == "document"
        config = self._configured(case.method, case.size, document=document)
        model = self._attach(self.mine, config)
        self._check_size(model, case)
        found = self._document(model, config) if document else self._of_bank(case, model, config)
        return {"what": case.what, "method": case.method, "size": case.size, **found}

    def _of_bank(self, case: Case, model: PreTrainedModel, config: Config) -> dict[str, Any]:
        settings, repeats = self.settings, self.settings.repeats
        bank = filled_bank(
            model, self.source, rows=settings.batch_size, size=case.size, seed=settings.seed
        )
        held = {
            "slots": slots_held(attached(model).plan, bank),
            "state_bytes": bank.bytes_per_row() if case.size else 0,
        }
        if case.what == "train_step":
            return held | measure_training(
                model,
                self.plain,
                (config, self.vanilla),
                bank,
                seed=settings.seed,
                repeats=repeats,
                clock=self.clock,
            )
        length, seed = settings.segment_length, settings.seed + 1
        empty = MemoryBank.empty(settings.batch_size, self.device)
        found = measure_step(
            make_step(model, bank, length, seed),
            make_step(self.plain, empty, length, seed),
            repeats,
            self.clock,
        )
        topk = config.memory.flat().get("memory.topk")
        if topk is not None and case.size:
            found["search"] = self._search(model, case.size, topk)
        return held | found

    def _document(self, model: PreTrainedModel, config: Config) -> dict[str, Any]:
        tokens = self.settings.document_tokens
        dtype = getattr(torch, self.settings.dtype)
        return {"state_bytes": state_bytes_per_row(model, tokens, dtype)} | measure_document(
            model,
            self.plain,
            config,
            tokens=tokens,
            seed=self.settings.seed,
            repeats=self.settings.repeats,
            clock=self.clock,
        )

    def _search(self, model: PreTrainedModel, size: int, topk: int) -> dict[str, Any]:
        config = model.config
        keys, queries = draw_rows(
            self.source,
            self.settings.batch_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            slots=size,
            queries=self.settings.segment_length,
            size=head_size(model),
            seed=self.settings.seed,
            like=next(model.parameters()),
        )
        return measure_search(queries, keys, topk, self.settings.repeats, self.clock)

    def _configured(self, method: str, size: int, document: bool = False) -> Config:
        return configured(
            method,
            self.shape,
            size=size,
            segment_length=self.settings.segment_length,
            topk=self.settings.topk,
            document=document,
        )

    def _attach(self, model: PreTrainedModel, config: Config) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(self.settings.seed)
            return attach(model, config.memory, backend=self.settings.backend)

    def _check_size(self, model: PreTrainedModel, case: Case) -> None:
        tokens = self.settings.document_tokens if case.what == "document" else case.size
        dtype = getattr(torch, self.settings.dtype)
        held = state_bytes_per_row(model, tokens, dtype) * self.settings.batch_size
        if held > self.settings.max_state_gb * GB:
            raise TooLargeError(
                f"its memory takes {held / GB:.2f} GB, more than "
                f"max_state_gb={self.settings.max_state_gb:g}"
            )


def key_source(keys: str) -> Source:
    """Return the source of keys that the settings name; a run's model is read for it."""
    if keys == CLUSTERED:
        return Clustered()
    if keys == RANDOM:
        return Gaussian()
    from unimem.bench.recorded_keys import recorded_keys

    return recorded_keys(Path(keys))
