"""python -m unimem.cli.methods: the README's table of methods, made from conf/method/*.yaml."""

from dataclasses import fields
from typing import Any

from unimem.config import Config, compose
from unimem.memory.registry import DIMENSIONS, option_class, option_fields
from unimem.memory.settings import MemorySettings
from unimem.paths import config_root

HEADER = (
    "method",
    *DIMENSIONS,
    "positions",
    "fusion",
    "BPTT (segments)",
    "fidelity",
)


def method_table() -> str:
    """Return the presets as a Markdown table: four choices, their budgets, what they leave open."""
    names = sorted(f.stem for f in (config_root() / "conf" / "method").glob("*.yaml"))
    configs = [compose(f"method={name}") for name in names if name != "custom"]
    rows = [HEADER, tuple("---" for _ in HEADER), *map(_row, configs)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(config: Config) -> tuple[str, ...]:
    memory, method = config.memory, config.method
    paper = f" ({_link(method.paper)})" if method.paper else ""
    at_layers = bool(memory.plan(22).layers)
    return (
        f"`{method.name}`{paper}",
        *(
            ", ".join(_option(d, name, given) for name, given in memory.choice(d).items())
            for d in DIMENSIONS
        ),
        _positions(memory) if at_layers else "",
        memory.fusion if at_layers else "",
        f"{memory.bptt_segments}" if "bptt_segments" in memory.model_fields_set else "",
        f"{'exact' if method.exact else 'approximate'}: {method.note}",
    )


def _link(paper: str) -> str:
    """Link an arXiv number to its page; anything else stays as it is."""
    number = paper.removeprefix("arXiv ")
    return paper if number == paper else f"[{paper}](https://arxiv.org/abs/{number})"


def _positions(memory: MemorySettings) -> str:
    """Return the scheme, and whether the reading's pattern holds for the own segment too."""
    scheme, given = memory.scheme()
    own = "; own segment too" if memory.local == "reading" else ""
    return _option("positions", scheme, given) + own


def _option(dimension: str, name: str, given: Any) -> str:
    """Name an option and its budgets, but for those that are as they would be anyway."""
    usual = {field.name: field.default for field in fields(option_class(dimension, name))}
    shown = ", ".join(
        ", ".join(map(str, value))
        if key == "indices"
        else f"{key} {'null' if value is None else value}"
        for key, value in option_fields(dimension, name, given).items()
        if value != usual[key]
    )
    return f"{name} ({shown})" if shown else name


if __name__ == "__main__":
    print(method_table())
