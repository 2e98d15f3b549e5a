"""unimem-sweep: one run for each combination of values, none of them twice."""

import logging
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from unimem.cli import Shown, leave, say
from unimem.cli.command import launch, take_config_dir
from unimem.config import ConfigError
from unimem.studies.estimate.estimate import estimate, report
from unimem.studies.run.cell_state import begun, finished, write_study
from unimem.studies.run.display import Lines, LiveTable, summary, tell
from unimem.studies.run.launch import Launcher, make_launcher
from unimem.studies.run.runner import Runner
from unimem.studies.study import Study, expand
from unimem.words import counted

TAKES = "unimem-sweep takes name=value arguments; --help shows them"


def main() -> None:
    """Run `unimem-sweep` with the arguments of the command line."""
    take_config_dir()
    arguments = ["dry_run=true" if a == "--dry-run" else a for a in sys.argv[1:]]
    if {"-m", "--multirun"} & set(arguments):
        leave(TAKES)
    if any(argument.startswith("-") for argument in arguments):
        launch(_refuse, "sweep")  # --help and its kin
        return
    _log_once()
    try:
        study = expand(arguments)
        sys.exit(_list(study) if study.options.dry_run else run(study))
    except (ValueError, OSError) as error:
        leave(error)
    except KeyboardInterrupt:
        sys.exit(130)


def run(study: Study) -> int:
    """Run what is not finished of a study, show it, and give the exit status."""
    console = Console()
    live = LiveTable(console) if console.is_terminal else nullcontext(Lines(console))
    launcher = make_launcher(study.options, study.runs)
    tell(console, f"{_counts(study)}, listed in {write_study(study)}", *_estimate(study, launcher))
    launcher.prepare()
    with live as display:
        runner = Runner(study.runs, launcher, display)
        code = runner.run()
    tell(console, summary(runner.statuses))
    if code:
        tell(console, f"go on with: {shlex.join(['unimem-sweep', *study.arguments])}")
    return code


def _list(study: Study) -> int:
    """Print the runs, what they will take, and why they cannot start; give the exit status."""
    for cell in study.runs:
        state = "finished" if finished(cell) else "begun" if begun(cell) else "new"
        say(f"{state:<9} {cell.label}  {cell.folder}")
    launcher = make_launcher(study.options, study.runs)
    say("\n".join([_counts(study), *_estimate(study, launcher)]))
    problems = dict.fromkeys(cell.problem for cell in study.runs if cell.problem)
    for problem in problems:
        say(f"the sweep does not start here: {problem}")
    return 1 if problems else 0


def _counts(study: Study) -> str:
    """Count the cells, and the runs that are none: the bases whose weights cells start from."""
    cells, others = counted(len(study.cells), "cell"), len(study.runs) - len(study.cells)
    return f"{cells} and {counted(others, 'base run')} for them" if others else cells


def _estimate(study: Study, launcher: Launcher) -> list[str]:
    found = estimate(study.runs, Path(study.options.output), launcher.num_gpus)
    return report(found, len(study.runs), launcher.slots)


def _refuse(node: Any) -> None:
    raise ConfigError(TAKES)


def _log_once() -> None:
    """Send what the package logs to stderr; what all cells have in common is said once."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in said
        said.add(message)
        return new

    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(is_new)
    handler.setFormatter(Shown())
    logger = logging.getLogger("unimem")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    main()
