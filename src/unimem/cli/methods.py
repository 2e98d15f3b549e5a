"""python -m unimem.cli.methods: the README's table of methods, made from conf/method/*.yaml."""

from typing import Any

from unimem.config import Config, compose
from unimem.memory.plan import DIMENSIONS, option_fields
from unimem.paths import config_root

HEADER = (
    "method",
    *DIMENSIONS,
    "positions, fusion",
    "gradient back",
    "exact",
)


def method_table() -> str:
    """Give the presets as a Markdown table: four choices, their budgets, what they leave open."""
    names = sorted(f.stem for f in (config_root() / "conf" / "method").glob("*.yaml"))
    configs = [compose(f"method={name}") for name in names if name != "custom"]
    rows = [HEADER, tuple("---" for _ in HEADER), *map(_row, configs)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(config: Config) -> tuple[str, ...]:
    memory, method = config.memory, config.method
    paper = f" ({method.paper})" if method.paper else ""
    at_layers = bool(memory.plan(22).layers)
    return (
        f"`{method.name}`{paper}",
        *(
            ", ".join(_option(d, name, given) for name, given in memory.choice(d).items())
            for d in DIMENSIONS
        ),
        f"{memory.positions}, {memory.fusion}" if at_layers else "",
        f"{memory.bptt_segments} segments" if "bptt_segments" in memory.model_fields_set else "",
        f"{'yes' if method.exact else 'nearest'}: {method.note}",
    )


def _option(dimension: str, name: str, given: Any) -> str:
    fields = option_fields(dimension, name, given)
    shown = ", ".join(
        _span(value) if isinstance(value, list) else f"{key} {value}"
        for key, value in fields.items()
        if not isinstance(value, bool)
    )
    return f"{name} ({shown})" if shown else name


def _span(values: list[int]) -> str:
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}-{values[-1]}"
    return ", ".join(map(str, values))


if __name__ == "__main__":
    print(method_table())
