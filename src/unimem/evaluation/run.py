"""Everything that is said about a trained model: one call after training, or `unimem-eval`."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from unimem.data.documents import Corpus, Oracle
from unimem.evaluation.ages import Ages
from unimem.evaluation.records import (
    difference_record,
    estimate_record,
    positions_record,
    score_record,
)
from unimem.evaluation.sample import Sample
from unimem.evaluation.score import Scores, score
from unimem.evaluation.statistics import compare, mean_nll, perplexity
from unimem.evaluation.tokens import TokenTable
from unimem.memory.plan import MemoryPlan
from unimem.memory.unread import unread
from unimem.model.attach import attached
from unimem.model.layer import MemoryControl
from unimem.model.precision import cast_weights, dtype_name, own_precision
from unimem.settings import EvaluationSettings
from unimem.words import counted

logger = logging.getLogger(__name__)

PROTOCOL = "segments, memory reset at documents, first token of a document not scored"
ROUNDING = 1e-5
"""Nats by which two readings of the same text may differ, by the order of sums alone."""
DIVERGED = "the model has diverged, and perplexities are recorded as null"
LEAK = "below the best possible loss: data or memory leaks"


def evaluate_all(
    model: PreTrainedModel,
    corpus: Corpus,
    *,
    segment_length: int,
    settings: EvaluationSettings,
    folder: Path,
    precision: str | None = None,
) -> dict[str, Any]:
    """Read held-out documents with the model and give what was found, ready for JSON.

    The losses of every token go to `documents.npz` in `folder`. With `settings.controls` a model
    with memory reads again with memory off and with another document's; a corpus whose law is
    known adds the best possible losses. `precision` is that of the run, as `trainer.precision`
    names it: weights are brought to its type in place, and it is recorded; None is that of the
    weights.
    """
    precision = precision or own_precision(model)
    cast_weights(model, precision)
    documents = Sample(corpus.validation, settings.documents, settings.max_tokens)
    plan = attached(model).plan
    if settings.documents is not None and settings.documents > len(documents):
        logger.info(
            "evaluation.documents=%d, but there are %s: all are evaluated",
            settings.documents,
            counted(len(documents), "held-out document"),
        )
    uses, skipped = _uses(plan, settings, len(documents))
    scores: dict[MemoryControl, Scores] = {}
    for use in uses:
        scores[use] = read = score(
            model,
            documents,
            segment_length=segment_length,
            batch_size=settings.batch_size,
            use=use,
            segments_per_call=settings.segments_per_call,
            precision=precision,
        )
        logger.info(
            "read %d tokens with memory %s, %.0f tokens/s", read.tokens, use, read.tokens_per_second
        )
    own = scores["own"]
    ids = [documents.ids(i) for i in own.documents]
    columns = {use: read.nll for use, read in scores.items()}
    if corpus.oracle is not None:
        columns |= _bounds(corpus.oracle, ids, segment_length, plan)
    table = TokenTable.of([documents.name(i) for i in own.documents], columns)
    table.save(folder)

    bytes_read = None
    if corpus.token_bytes is not None:
        bytes_read = sum(int(corpus.token_bytes[text[1:]].sum()) for text in ids)
    ages = None
    if np.isfinite(table.columns["own"]).all():
        ages = _ages(model, documents, segment_length, settings, precision)
    elif settings.age_documents:
        skipped["ages"] = "the model has diverged"
    leaks = _leaks(table, plan, segment_length, corpus.vocab_size)
    without = _without_memory(table, plan, documents, segment_length)
    warnings = [*_diverged(table), *leaks, *without]
    for warning in warnings:
        logger.warning(warning)
    return {
        "protocol": PROTOCOL,
        "segment_length": segment_length,
        "documents": len(own.documents),
        "tokens": own.tokens,
        "bytes": bytes_read,
        "precision": precision,
        "weights_dtype": dtype_name(model.dtype),
        "state_bytes_per_row": own.state_bytes,
        "scores": {
            use: score_record(table.columns[use], table.document, read, bytes_read)
            for use, read in scores.items()
        },
        "bounds": {
            name.removeprefix("bound_"): estimate_record(mean_nll(nll, table.document))
            for name, nll in table.columns.items()
            if name.startswith("bound_")
        },
        "comparisons": {
            f"own-{name}": difference_record(compare(table.columns["own"], nll, table.document))
            for name, nll in table.columns.items()
            if name != "own"
        },
        "by_position": positions_record(table, segment_length),
        "ages": ages,
        "skipped": skipped,
        "warnings": warnings,
        "leak": bool(leaks),
    }


def _ages(
    model: PreTrainedModel,
    documents: Sample,
    segment_length: int,
    settings: EvaluationSettings,
    precision: str,
) -> dict[str, Any] | None:
    """Read a few documents once more and record which ages of memory are read."""
    if not settings.age_documents or not attached(model).plan.layers:
        return None
    some = Sample(documents, settings.age_documents, None)
    ages = Ages(segment_length)
    batch_size = min(settings.batch_size, len(some))
    score(
        model,
        some,
        segment_length=segment_length,
        batch_size=batch_size,
        observer=ages,
        precision=precision,
    )
    return ages.record(len(some))


def remembers(plan: MemoryPlan) -> bool:
    """Whether anything passes from one segment to the next."""
    return bool(plan.layers) or plan.soft is not None


def _uses(
    plan: MemoryPlan, settings: EvaluationSettings, documents: int
) -> tuple[list[MemoryControl], dict[str, str]]:
    """Return which memories to show, and why a control is left out."""
    if not settings.controls:
        return ["own"], {}
    if not remembers(plan):
        return ["own"], {"controls": "the method has no memory"}
    rows = min(settings.batch_size, documents)
    if rows < 2:
        reason = "needs evaluation.batch_size and evaluation.documents of 2 or more"
        logger.warning("another document's memory is not shown: %s", reason)
        return ["own", "off"], {"other": reason}
    return ["own", "off", "other"], {}


def _bounds(
    oracle: Oracle, ids: list[np.ndarray], segment_length: int, plan: MemoryPlan
) -> dict[str, list[np.ndarray]]:
    """Return the best possible losses without memory, with this one's budget, and with all.

    The budget is the tokens that the slots of a layer stand for, the newest of the text. Soft
    tokens are summaries of what no number of tokens bounds.
    """
    memories: dict[str, int | None] = {"bound_none": 0, "bound_unlimited": None}
    budgets = [layer.most_tokens(segment_length) for layer in plan.layers.values()]
    tokens = [held for held in budgets if held is not None]
    if plan.soft is None and len(tokens) == len(budgets) and any(tokens):
        memories["bound_memory"] = max(tokens)
    return {
        name: [oracle.nll(text, segment_length, memory)[1:] for text in ids]
        for name, memory in memories.items()
    }


def _without_memory(
    table: TokenTable, plan: MemoryPlan, documents: Sample, segment_length: int
) -> list[str]:
    """Return warnings: memory was read in few documents or in none, or made no difference."""
    if not remembers(plan):
        return []
    lengths = [documents.length(i) for i in range(len(documents))]
    found = [unread(lengths, segment_length, "held-out document")]
    own = table.columns["own"]
    same = [name for name in ("off", "other") if name in table.columns]
    if same and all(np.allclose(own, table.columns[x], rtol=0, atol=ROUNDING) for x in same):
        found.append(
            f"memory made no difference: with memory own, {' and '.join(same)} every token's loss "
            f"is the same to {ROUNDING:g} nats"
        )
    return [line for line in found if line is not None]


def _diverged(table: TokenTable) -> list[str]:
    """Name the uses of memory whose losses are no numbers, or that predict worse than any guess."""
    found: list[str] = []
    for use in ("own", "off", "other"):
        if use not in table.columns:
            continue
        nll = table.columns[use]
        bad = int((~np.isfinite(nll)).sum())
        mean = float(nll.mean(dtype=np.float64))
        if bad:
            found.append(f"{DIVERGED} (memory {use}: {bad} of {len(nll)} losses are no numbers)")
        elif not math.isfinite(perplexity(mean)):
            found.append(f"{DIVERGED} (memory {use}: {mean:.4g} nats per token)")
    return found


def _leaks(table: TokenTable, plan: MemoryPlan, segment_length: int, vocab_size: int) -> list[str]:
    """Name every reading that is surely below the best loss that what it sees allows.

    Own memory may hold the whole document, the controls hold nothing of it. The bound without
    memory leaves out what a window's first token tells of the document's law: at most ln V nats
    for each segment.
    """
    if "bound_none" not in table.columns:
        return []
    warnings: list[str] = []
    for use in ("own", "off", "other"):
        if use not in table.columns:
            continue
        unlimited = use == "own" and remembers(plan)
        bound = "bound_unlimited" if unlimited else "bound_none"
        slack = 0.0 if unlimited else math.log(vocab_size) / segment_length
        difference = compare(table.columns[use], table.columns[bound], table.document)
        if difference.high < -slack:
            warnings.append(
                f"{LEAK} (memory {use}: {difference.mean:.4f} nats per token from {bound}, "
                f"interval [{difference.low:.4f}, {difference.high:.4f}])"
            )
    return warnings
