"""How each kind of statement is decided, on the tokens of one corpus.

A judge takes the panel and the statement's values. What a statement selects must be finished; of
several selected settings the one with the lowest loss speaks for them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from unimem.evaluation.statistics import Estimate, of_several, perplexity
from unimem.results.comparison import (
    SEEDS,
    CorpusComparison,
    common_seeds,
    compare,
    difference,
    lowest,
    p_words,
)
from unimem.results.losses import Readings
from unimem.results.render.blocks import Measured
from unimem.results.select import Select, number
from unimem.words import counted, written

Verdict = Literal["held", "did not hold", "not decided"]
Values = Mapping[str, Any]

ONE_DOCUMENT = "a single document has no interval"
COSTS = {
    "training": "seconds of training",
    "evaluation": "seconds of reading held-out tokens",
    "memory": "peak memory of the process or GPU",
}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict, what it rests on in words, and the same as numbers."""

    verdict: Verdict
    reason: str
    numbers: dict[str, Any]


class UndecidedError(Exception):
    """There is nothing to decide by; says why."""


def lower(comparison: CorpusComparison, values: Values) -> Judgement:
    """`lower` has a lower mean loss than `than`."""
    own = _pick(comparison, values["lower"])
    other = _pick(comparison, values["than"], but=values["lower"])
    return _falls_from(comparison, own, other)


def best(comparison: CorpusComparison, values: Values) -> Judgement:
    """`best` has a lower mean loss than every setting that it does not select (Holm)."""
    own = _pick(comparison, values["best"])
    others = _others(comparison, values["best"])
    if not others:
        raise UndecidedError("there is no other setting")
    paired = compare(comparison.readings, own.place, others)
    better = [i for i in paired if paired[i].claimed and paired[i].estimate.mean < 0]
    worse = [i for i in paired if paired[i].claimed and paired[i].estimate.mean > 0]
    parts = [_level(comparison, own.place)]
    numbers: dict[str, Any] = {
        "best": own.label,
        "p": {comparison.labels[i]: p_words(paired[i].p) for i in paired},
    }
    if paired:
        near = min(paired, key=lambda i: paired[i].estimate.mean)
        value = _measured(paired[near].estimate, "+.4f")
        parts.append(f"next {_level(comparison, near)}, {value} nats per token from it")
        parts.append(f"p {p_words(paired[near].p)} ({_over(paired[near].seeds)}; Holm)")
        numbers |= _numbers(value, 0.0, paired[near].seeds)
    seeds = {i: paired[i].seeds if i in paired else 0 for i in others if i not in worse}
    alike = [
        comparison.labels[i] + (f" ({counted(n, 'seed')} in common)" if n < SEEDS else "")
        for i, n in seeds.items()
    ]
    unfinished = [group.label for group in comparison.unfinished]
    verdict: Verdict = "held"
    if better:
        verdict = "did not hold"
        parts.append(f"lower: {', '.join(comparison.labels[i] for i in better)}")
    elif alike or unfinished:
        verdict = "not decided"
        parts += [f"no significant difference to {', '.join(alike)}"] if alike else []
        parts += [f"not finished: {', '.join(unfinished)}"] if unfinished else []
    return Judgement(verdict=verdict, reason=_sentence(parts, [own]), numbers=numbers)


def share(comparison: CorpusComparison, values: Values) -> Judgement:
    """`share` has at least this share of the gain that `of` has over `from`."""
    picks = [_pick(comparison, values[key]) for key in ("share", "of", "from")]
    losses, seeds = _losses(comparison, picks)
    document = comparison.readings[0].table.document
    unit = "perplexity" if values["on"] == "perplexity" else "nats per token"

    def worth(means: np.ndarray) -> np.ndarray:
        return perplexity(means) if unit == "perplexity" else means

    def gain(means: np.ndarray) -> np.ndarray:
        return worth(means)[2] - worth(means)[1]

    def part(means: np.ndarray) -> np.ndarray:
        return (worth(means)[2] - worth(means)[0]) / gain(means)

    whole = _measured(of_several(losses, document, gain), "+.4f")
    if not whole.low > 0:
        raise UndecidedError(
            f"{picks[1].label} has no clear gain over {picks[2].label}: {whole} {unit}, "
            f"{counted(len(seeds), 'seed')}"
        )
    value = _measured(of_several(losses, document, part), ".1%")
    parts = f"{picks[0].label} has {value} of the gain {whole.mean:.4f} {unit}"
    return _decide(value, values["at_least"], "above", picks, comparison, parts)


def spread(comparison: CorpusComparison, values: Values) -> Judgement:
    """The range of mean losses over a setting's values is smaller for `spread` than for `below`."""
    over = values["over"]
    curves = [_curve(comparison, values[key], over) for key in ("spread", "below")]
    common = sorted(set(curves[0]) & set(curves[1]))
    if len(common) < 2:
        raise UndecidedError(f"they share fewer than two values of {over}")
    picks = [_Pick(comparison, curve[x]) for curve in curves for x in common]
    losses, _ = _losses(comparison, picks)
    # The settings of both sides are behind one another.
    size = len(common)
    found = of_several(
        losses,
        comparison.readings[0].table.document,
        lambda means: np.ptp(means[:size], 0) - np.ptp(means[size:], 0),
    )
    own, other = (float(np.ptp(side.mean((1, 2)))) for side in (losses[:size], losses[size:]))
    value = _measured(found, "+.4f")
    parts = (
        f"ranges over {over}={', '.join(f'{x:g}' for x in common)}: {values['spread']} {own:.4f}, "
        f"{values['below']} {other:.4f}, difference {value} nats per token"
    )
    return _decide(value, 0.0, "below", picks, comparison, parts)


def falls(comparison: CorpusComparison, values: Values) -> Judgement:
    """The mean loss at a setting's largest value is lower than at its smallest."""
    curve = _curve(comparison, values["falls"], values["with"])
    if len(curve) < 2:
        raise UndecidedError(f"there are fewer than two values of {values['with']}")
    last, first = (_Pick(comparison, curve[x]) for x in (max(curve), min(curve)))
    return _falls_from(comparison, last, first)


def cheaper(comparison: CorpusComparison, values: Values) -> Judgement:
    """`cheaper` costs at most this share of what `than` costs, for every seed."""
    own = _pick(comparison, values["cheaper"])
    other = _pick(comparison, values["than"], but=values["cheaper"])
    seeds = _common(comparison, [own, other])
    _require_one_machine(comparison, [own, other])
    costs = [_costs(comparison.readings[p.place], values["cost"], seeds) for p in (own, other)]
    ratios = [a / b for a, b in zip(*costs, strict=True)]
    value = Measured(float(np.median(ratios)), min(ratios), max(ratios), ".3f")
    parts = f"{own.label} takes {value} of the {COSTS[values['cost']]} of {other.label}"
    parts += " (median and range of the seeds)"
    return _decide(value, values["at_most"], "below", [own, other], comparison, parts)


class _Pick:
    """A setting that speaks for a selection; `note` says if it was chosen among several."""

    def __init__(self, comparison: CorpusComparison, place: int, note: str = ""):
        self.place, self.label, self.note = place, comparison.labels[place], note


def _pick(comparison: CorpusComparison, select: Select, but: Select | None = None) -> _Pick:
    places = _places(comparison, select)
    if but is not None:
        places = [i for i in places if not but.matches(comparison.readings[i].group.overrides)]
    if not places:
        raise UndecidedError(f"no {'other ' if but else ''}setting is {select}")
    place = lowest(comparison.levels, places)
    note = (
        f"{comparison.labels[place]} was chosen as the lowest of {len(places)} on these same tokens"
    )
    return _Pick(comparison, place, note if len(places) > 1 else "")


def _places(comparison: CorpusComparison, select: Select) -> list[int]:
    unfinished = [group.label for group in comparison.unfinished if select.matches(group.overrides)]
    if unfinished:
        raise UndecidedError(f"not finished: {', '.join(unfinished)}")
    return [i for i, r in enumerate(comparison.readings) if select.matches(r.group.overrides)]


def _others(comparison: CorpusComparison, select: Select) -> list[int]:
    return [i for i, r in enumerate(comparison.readings) if not select.matches(r.group.overrides)]


def _curve(comparison: CorpusComparison, select: Select, setting: str) -> dict[float, int]:
    """Return the place of the one selected setting at each numeric value."""
    curve: dict[float, int] = {}
    for i in _places(comparison, select):
        x = number(comparison.readings[i].group.overrides.get(setting))
        if x in curve:
            both = f"{comparison.labels[curve[x]]} and {comparison.labels[i]}"
            raise UndecidedError(f"{select} is not one setting for each {setting}: {both}")
        if x is not None:
            curve[x] = i
    return curve


def _common(comparison: CorpusComparison, picks: Sequence[_Pick]) -> list[int]:
    readings = [comparison.readings[pick.place] for pick in picks]
    seeds = common_seeds(readings)
    if not seeds:
        raise UndecidedError(_few(readings))
    return seeds


def _losses(comparison: CorpusComparison, picks: Sequence[_Pick]) -> tuple[np.ndarray, list[int]]:
    """Return the losses [S, K, N] of what was picked, for the seeds that all have."""
    seeds = _common(comparison, picks)
    losses = [comparison.readings[pick.place].of(seeds) for pick in picks]
    if comparison.levels[0].documents == 1:
        raise UndecidedError(ONE_DOCUMENT)
    return np.stack(losses).astype(np.float64), seeds


def _falls_from(comparison: CorpusComparison, own: _Pick, other: _Pick) -> Judgement:
    _common(comparison, [own, other])
    paired = difference(comparison.readings[own.place], comparison.readings[other.place])
    assert paired is not None
    value = _measured(paired, "+.4f")
    levels = f"{_level(comparison, own.place)}, {_level(comparison, other.place)}"
    parts = f"{levels}, difference {value} nats per token"
    return _decide(value, 0.0, "below", [own, other], comparison, parts)


def _costs(readings: Readings, cost: str, seeds: Sequence[int]) -> list[float]:
    found: list[float] = []
    for seed, value, speed, memory in zip(
        readings.seeds,
        readings.each("training_seconds"),
        readings.each("evaluation", "scores", "own", "tokens_per_second"),
        readings.each("peak_memory_bytes"),
        strict=True,
    ):
        known = {"training": value, "evaluation": 1 / speed if speed else None, "memory": memory}
        if seed in seeds:
            if not known[cost]:
                raise UndecidedError(f"{readings.group.label} has no record of {COSTS[cost]}")
            found.append(known[cost] or math.nan)
    return found


def _require_one_machine(comparison: CorpusComparison, picks: Sequence[_Pick]) -> None:
    results = [cell.result for pick in picks for cell in comparison.readings[pick.place].cells]
    machines = [result["machine"] for result in results if result is not None]
    if any(machine != machines[0] for machine in machines):
        raise UndecidedError("the cells ran on different machines")


def _decide(
    value: Measured,
    bound: float,
    side: Literal["below", "above"],
    picks: Sequence[_Pick],
    comparison: CorpusComparison,
    parts: str,
) -> Judgement:
    """Compare an interval with a bound."""
    readings = [comparison.readings[pick.place] for pick in picks]
    seeds = len(common_seeds(readings))
    why = _few(readings)
    words = [parts] if why else [parts, counted(seeds, "seed")]
    if not why and math.isnan(value.low):
        why = ONE_DOCUMENT
    elif not why and value.low <= bound <= value.high:
        why = f"the interval spans {bound:.3g}"
    held: Verdict = "held" if (value.high < bound) == (side == "below") else "did not hold"
    return Judgement(
        verdict="not decided" if why else held,
        reason=_sentence([*words, why] if why else words, picks),
        numbers=_numbers(value, bound, seeds) | {"settings": [pick.label for pick in picks]},
    )


def _few(readings: Sequence[Readings]) -> str:
    """Return why there are too few common seeds, and which cells are missing; '' if enough."""
    seeds = common_seeds(readings)
    if len(seeds) >= SEEDS:
        return ""
    missing = [cell.label for r in readings for cell in r.group.unfinished]
    told = f", not finished: {', '.join(dict.fromkeys(missing))}" if missing else ""
    return f"{counted(len(seeds), 'seed')} in common, {SEEDS} are needed{told}"


def _measured(estimate: Estimate, form: str) -> Measured:
    return Measured(estimate.mean, estimate.low, estimate.high, form)


def _numbers(value: Measured, bound: float, seeds: int) -> dict[str, Any]:
    rounded = {key: float(f"{getattr(value, key):.6g}") for key in ("mean", "low", "high")}
    known = {key: None if math.isnan(x) else x for key, x in rounded.items()}
    return known | {"bound": bound, "seeds": seeds}


def _level(comparison: CorpusComparison, place: int) -> str:
    mean = comparison.levels[place].mean
    factor = written(perplexity(mean), ".3f")
    return f"{comparison.labels[place]} at {mean:.4f} (perplexity {factor})"


def _over(seeds: int) -> str:
    """Return over what a p-value is."""
    return "over documents alone, 1 seed" if seeds == 1 else f"over {seeds} seeds and documents"


def _sentence(words: Sequence[str], picks: Sequence[_Pick]) -> str:
    notes = list(dict.fromkeys(pick.note for pick in picks if pick.note))
    return (
        ". ".join(["; ".join(words), *(f"{note}, which is optimistic for it" for note in notes)])
        + "."
    )
