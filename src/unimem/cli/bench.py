"""unimem-bench: what memory costs in time and space, against the same model without it."""

from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from unimem.bench.settings import BenchSettings
from unimem.cli import leave, say
from unimem.cli.command import launch
from unimem.config import ConfigError
from unimem.settings import describe
from unimem.words import system_error


def main() -> None:
    """Run `unimem-bench` with the arguments of the command line."""
    nodes: list[DictConfig] = []
    launch(nodes.append, "bench")
    # Methods are composed by Hydra, which composes nothing more while it runs a job.
    try:
        for node in nodes:
            run(node)
    except ConfigError as error:
        leave(error)


def run(node: DictConfig) -> None:
    """Measure, record and print the tables; a mistake is told without a traceback."""
    values = cast(dict[str, Any], OmegaConf.to_container(node))
    try:
        settings = BenchSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(describe(cast(Any, item)) for item in error.errors())) from None
    # What follows imports torch, which takes seconds; a wrong setting must not.
    from unimem.bench.gpu import bench_gpu
    from unimem.bench.report import as_lines
    from unimem.bench.run import bench
    from unimem.cli.train import set_up_logging

    set_up_logging()
    measure = bench_gpu if settings.what == ["gpu"] else bench
    try:
        record = measure(settings, say)
    except (ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(system_error(error)) from error
    say(f"\n{as_lines(record)}\n\nrecords, bench.md and bench.png: {Path(settings.output)}")
    if record["failures"]:
        leave(f"{record['failures']} failed by an error of the program; see above")


if __name__ == "__main__":
    main()
