"""The quickstart's report: tables with intervals, verdicts in words, figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimem.evaluation.claims import Exhibit, known_truth, same_weights
from unimem.evaluation.statistics import Estimate, perplexity
from unimem.evaluation.tokens import TokenTable
from unimem.results.curves import Curve, plot_by_position
from unimem.runs.files import write_bytes_atomic
from unimem.runs.records import read_result
from unimem.words import counted, written


@dataclass(frozen=True, kw_only=True)
class Section:
    """One exhibit as it is told: curves and bounds by label, `difference` with its title."""

    title: str
    about: str
    exhibit: Exhibit
    figure: str
    edges: Sequence[int]
    curves: Mapping[str, Curve]
    bounds: Mapping[str, Curve]
    difference: tuple[str, Curve]

    def draw(self, folder: Path) -> None:
        """Write the figure."""
        plot_by_position(
            folder / self.figure,
            title=self.title,
            edges=self.edges,
            curves=self.curves,
            bounds=self.bounds,
            difference=self.difference,
        )

    def text(self) -> str:
        """Return the section in Markdown."""
        exhibit = self.exhibit
        lines = [f"## {self.title}", "", f"{self.about} Counted: {exhibit.scope}.", ""]
        lines += _table("loss", exhibit.levels, sign="")
        lines += ["", *_table("paired difference", exhibit.differences, sign="+")]
        lines += ["", f"![{self.title}]({self.figure})", ""]
        if exhibit.verdict is None:
            return "\n".join([*lines, "Too short a training to be judged: shown, not claimed."])
        lines += [f"- {'yes' if claim.holds else 'NO'}: {claim.text}" for claim in exhibit.claims]
        return "\n".join([*lines, "", f"**{exhibit.verdict}**"])


def write_report(
    output: Path, folder: Path, *, quick: bool, seeds: int, seconds: float
) -> tuple[str, bool]:
    """Write `report.md` and its figures to `output`; give its text, and whether nothing failed.

    `folder` holds the finished runs of the quickstart, which took `seconds`.
    """
    sections = [_urn(folder) if quick else _markov(folder, seeds), _code(folder, judged=not quick)]
    for section in sections:
        section.draw(output)
    end = f"{seconds:.0f} seconds in all. Runs, logs and the loss of every token: `{folder}`."
    text = "\n\n".join(["# What memory does", *(section.text() for section in sections), end])
    write_bytes_atomic(output / "report.md", f"{text}\n".encode())
    return text, all(section.exhibit.verdict != "FAIL" for section in sections)


def _markov(folder: Path, seeds: int) -> Section:
    memory = [folder / f"markov-{seed}" for seed in range(seeds)]
    none = [folder / f"markov-none-{seed}" for seed in range(seeds)]
    results = [read_result(run) for run in memory + none]
    config, found = results[0]["config"], results[0]["evaluation"]["by_position"]
    without = results[seeds]["evaluation"]["by_position"]
    segment_length = config["memory"]["segment_length"]
    exhibit = known_truth(
        [TokenTable.load(run) for run in memory],
        [TokenTable.load(run) for run in none],
        first=2 * segment_length,
        segment_length=segment_length,
        vocab_size=config["data"]["states"],
        leak=any(result["evaluation"]["leak"] for result in results),
    )
    return Section(
        title="Known truth: documents sampled from Markov chains",
        about=(
            "Each document has its own transition matrix, so only its own past helps to predict "
            "it; the best possible loss is known, with and without memory. "
            f"Segments of {segment_length} tokens, {config['memory']['size']} tokens of memory, "
            f"{counted(seeds, 'seed')}."
        ),
        exhibit=exhibit,
        figure="markov_by_position.png",
        edges=found["edges"],
        curves={
            "with memory": found["own"],
            "the same, memory off": found["off"],
            "trained without memory": without["own"],
        },
        bounds={
            "best possible without memory": found["bound_none"],
            "best possible with memory": found["bound_memory"],
        },
        difference=("the same weights, memory on - off", found["own-off"]),
    )


def _urn(folder: Path) -> Section:
    run = folder / "urn"
    result = read_result(run)
    found = result["evaluation"]["by_position"]
    first = result["config"]["memory"]["segment_length"]
    leak = result["evaluation"]["leak"]
    return Section(
        title="Smoke test: documents with their own word distributions",
        about="Half a minute of training; the same weights with memory on and off.",
        exhibit=same_weights(TokenTable.load(run), first=first, leak=leak),
        figure="urn_by_position.png",
        edges=found["edges"],
        curves={"memory on": found["own"], "memory off": found["off"]},
        bounds={
            "best possible without memory": found["bound_none"],
            "best possible with memory": found["bound_memory"],
        },
        difference=("the same weights, memory on - off", found["own-off"]),
    )


def _code(folder: Path, *, judged: bool) -> Section:
    run = folder / "code"
    result = read_result(run)
    config, evaluation = result["config"], result["evaluation"]
    found, memory = evaluation["by_position"], config["memory"]
    return Section(
        title="Real code: the Python standard library",
        about=(
            f"{evaluation['documents']} held-out files; the same weights with memory on and off. "
            f"Segments of {memory['segment_length']} tokens, {memory['size']} tokens of memory, "
            f"{result['tokens_seen'] / 1e6:.1f} million tokens of training."
        ),
        exhibit=same_weights(
            TokenTable.load(run), first=memory["size"], leak=evaluation["leak"], judged=judged
        ),
        figure="code_by_position.png",
        edges=found["edges"],
        curves={"memory on": found["own"], "memory off": found["off"]},
        bounds={},
        difference=("the same weights, memory on - off", found["own-off"]),
    )


def _table(head: str, estimates: Mapping[str, Estimate], sign: str) -> list[str]:
    """Return a Markdown table; with a sign the perplexity is that of one reading to the other's."""
    relative = " ratio" if sign else ""
    lines = [f"| {head:<42} | nats per token | 95 % interval    | perplexity{relative} |"]
    lines.append("|---|---|---|---|")
    for name, estimate in estimates.items():
        mean, low, high = (f"{x:{sign}.3f}" for x in (estimate.mean, estimate.low, estimate.high))
        factor = written(perplexity(estimate.mean), ".3f")
        lines.append(f"| {name:<42} | {mean:>14} | [{low}, {high}] | {factor} |")
    return lines
