"""unimem-sweep: one run for each combination of values, none of them twice."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.console import Console

from unimem.cli import say
from unimem.cli.command import OnceHandler, log_once, study_command
from unimem.studies.estimate.estimate import estimate, report
from unimem.studies.run.cell_state import begun, finished, write_study
from unimem.studies.run.display import Lines, LiveTable, print_lines, summary
from unimem.studies.run.launch import Launcher, make_launcher
from unimem.studies.run.runner import Runner
from unimem.studies.study import Study, expand
from unimem.words import counted


def main() -> None:
    """Run `unimem-sweep` with the arguments of the command line."""
    study_command("sweep", _run)


def _run(arguments: Sequence[str]) -> int:
    log_once(OnceHandler(partial(say, file=sys.stderr)))
    study = expand(arguments)
    return _list(study) if study.options.dry_run else run(study)


def run(study: Study) -> int:
    """Run what is not finished of a study, show it, and give the exit status."""
    console = Console()
    live = LiveTable(console) if console.is_terminal else nullcontext(Lines(console))
    launcher = make_launcher(study.options, study.runs)
    print_lines(
        console, f"{_counts(study)}, listed in {write_study(study)}", *_estimate(study, launcher)
    )
    launcher.prepare()
    with live as display:
        runner = Runner(study.runs, launcher, display)
        code = runner.run()
    print_lines(console, summary(runner.statuses))
    if code:
        print_lines(console, f"go on with: {shlex.join(['unimem-sweep', *study.arguments])}")
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


if __name__ == "__main__":
    main()
