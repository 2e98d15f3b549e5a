"""The records of a folder as tables and a figure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unimem.bench.figure import plot_ratios
from unimem.results.escape import as_paragraph, in_markdown
from unimem.results.frame_tables import as_markdown, as_text
from unimem.runs.files import write_bytes_atomic

Row = dict[str, Any]

NOTES = """\
Each number is the least of several, measured in turn with the same model without memory
(`vanilla`) in the same process; *ratio* divides the two, *median* is the median of the ratios of
neighbours. *Peak* is what a call holds at most above weights, their gradients, memory and inputs.
*State* is what a row carries from segment to segment. `vanilla` against itself shows the noise."""

TRAINING = "training step"

TITLES = {
    "step": "A segment step",
    "search": "Search alone",
    "train_step": "A training step",
    "document": "Evaluation of one document",
    "not_run": "Not run",
    "training": "Training TinyLLaMA-1.1B",
    "retrieval": "Search against its least possible time",
    "evaluation": "Evaluation of one long document",
    "gradients": "Gradients of each backend against the reference",
}
"""Of the tables, by name and in order."""


def tables(record: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Return a record's tables by name, those that have rows."""
    found = {name: list(record.get(name, [])) for name in TITLES}
    for case in record.get("cases", []):
        found[case["what"]].append(_row(case))
        if "search" in case:
            found["search"].append(_search_row(case))
    return {name: rows for name, rows in found.items() if rows}


def as_lines(record: Mapping[str, Any]) -> str:
    """Return a record's tables for the terminal."""
    return "\n\n".join(
        f"{TITLES[name]}, {_where(record)}\n{as_text(rows, _columns(rows))}"
        for name, rows in tables(record).items()
    )


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Read all records of a folder, by file name. Raises ValueError, which names a damaged one."""
    records: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.json")):
        try:
            records.append(json.loads(file.read_text("utf-8")))
            _section(records[-1])
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file} is no record of unimem-bench ({error!r}); move it elsewhere"
            ) from None
    return records


def write_report(folder: Path) -> None:
    """Write `bench.md` and `bench.png` of all records in a folder.

    There is no figure if nothing in it depends on the size of a memory.
    """
    records = read_records(folder)
    parts = ["# What memory costs", NOTES]
    for record in records:
        parts += _section(record)
    found = [panel for record in records for panel in _panels(record)]
    panels = dict(sorted(found, key=lambda panel: panel[0].endswith(TRAINING)))  # pairs stay pairs
    figure = folder / "bench.png"
    if panels:
        plot_ratios(figure, panels)
        parts.insert(2, "![Ratio to the model without memory](bench.png)")
    else:
        figure.unlink(missing_ok=True)
    write_bytes_atomic(folder / "bench.md", ("\n\n".join(parts) + "\n").encode())


def _section(record: Mapping[str, Any]) -> list[str]:
    settings, machine = record["settings"], record["machine"]
    said = (
        f"{record['clock']}, threads {record['threads']}, backend {record['backend']}, "
        f"keys {settings['keys']}, batch size {settings['batch_size']}, segments of "
        f"{settings['segment_length']} tokens, repeats {settings['repeats']}, seed "
        f"{settings['seed']}; {machine['gpu'] or machine['platform']}, {machine['cpus']} cores, "
        f"torch {record['versions']['torch']}, commit {record['commit']}."
    )
    parts = [f"## {in_markdown(_where(record))}", as_paragraph(said)]
    for name, rows in tables(record).items():
        parts += [f"### {TITLES[name]}", as_markdown(rows, _columns(rows))]
    return parts


def _where(record: Mapping[str, Any]) -> str:
    return f"{record['shape']} on {record['device']}, {record['dtype']}"


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _row(case: Mapping[str, Any]) -> Row:
    """Return a case's line."""
    if case["what"] == "step":
        row: Row = {"method": case["method"], "memory": case["size"]}
        for mode in ("forward", "both"):
            row |= {f"{mode} {name}": value for name, value in _times(case[mode]).items()}
        return row | {"state MB": _digits(case["state_bytes"] / 1e6)}
    row = {"method": case["method"], "memory": case["size"]}
    for name in ("segments", "tokens"):
        if name in case:
            row[name] = case[name]
    row |= _times(case)
    for name in ("tokens_per_second", "vanilla_tokens_per_second"):
        if name in case:
            row[name.replace("_per_second", "/s").replace("_", " ")] = _digits(case[name])
    return row | {"state MB": _digits(case["state_bytes"] / 1e6)}


def _times(found: Mapping[str, Any]) -> Row:
    return {
        "ms": _digits(found["ms"]),
        "ratio": _digits(found["ratio"]),
        "median": _digits(found["ratio_median"]),
        "peak MB": _digits(found["peak_mb"]),
        "vanilla MB": _digits(found["vanilla_peak_mb"]),
    }


def _search_row(case: Mapping[str, Any]) -> Row:
    found = case["search"]
    return {
        "method": case["method"],
        "memory": case["size"],
        "k": found["k"],
        "search ms": _digits(found["search_ms"]),
        "product ms": _digits(found["product_ms"]),
        "search / product": _digits(found["share"]),
        "product + topk ms": _digits(found["topk_ms"]),
        "product + topk / search": _digits(found["against_topk"]),
    }


def _panels(record: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, dict[int, float]]]]:
    """Return for each panel its title, and each method's ratio by memory size."""
    place = f"{record['shape']}, {record['device']}"
    for title, what, mode in (
        ("forward", "step", "forward"),
        ("forward and backward", "step", "both"),
        (TRAINING, "train_step", None),
    ):
        lines: dict[str, dict[int, float]] = {}
        for case in record.get("cases", []):
            if case["what"] == what and case["method"] != "vanilla":
                ratio = (case if mode is None else case[mode])["ratio"]
                lines.setdefault(case["method"], {})[case["size"]] = ratio
        if lines:
            yield f"{place}: {title}", lines


def _digits(value: float | None) -> float | None:
    """Keep three digits: a benchmark has no more."""
    return None if value is None else float(f"{value:.3g}")
