"""unimem-search: runs whose settings Optuna draws, each where the earlier ones were good."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from unimem.cli.command import OnceHandler, log_once, study_command
from unimem.studies.run.display import Lines, LiveTable, print_lines
from unimem.studies.run.launch import make_launcher

if TYPE_CHECKING:  # it needs optuna, which --help does not
    from unimem.studies.search.search import Search
    from unimem.studies.search.trials import Trials

SHOWN = 5
"""Best runs that are printed."""


def main() -> None:
    """Run `unimem-search` with the arguments of the command line."""
    study_command("search", _run)


def _run(arguments: Sequence[str]) -> int:
    try:
        return run(arguments)
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        sys.exit(
            "unimem-search needs optuna: pip install '.[search]' in the folder of this project"
        )


def run(arguments: Sequence[str]) -> int:
    """Add the trials that are missing, show them and the best, and give the exit status."""
    import optuna

    from unimem.studies.search.search import read_search
    from unimem.studies.search.trial_runner import TrialRunner
    from unimem.studies.search.trials import Trials

    console = Console()
    log_once(OnceHandler(partial(print_lines, console)))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = read_search(arguments)
    if search.options.dry_run:
        return _list(console, search)
    launcher = make_launcher(search.options, [search.example])
    launcher.prepare()
    live = LiveTable(console) if console.is_terminal else nullcontext(Lines(console))
    with closing(Trials(search)) as trials:
        with live as display:
            code = TrialRunner(trials, launcher, display).run()
        missing = search.options.trials - len(trials.finished)
        print_lines(console, trials.count())
        _tell_best(console, search, trials)
    _tell_next(console, search, missing)
    return code or int(missing > 0)


def _tell_best(console: Console, search: "Search", trials: "Trials") -> None:
    options = search.options
    best = trials.best()
    if not best:
        return
    several = len(options.objective) > 1
    ways = zip(options.directions, options.objective, strict=True)
    asked = ", ".join(f"{direction} {name}" for direction, name in ways)
    print_lines(
        console, f"{'runs that no other beats in all' if several else 'best runs'} ({asked}):"
    )
    for run in best if several else best[:SHOWN]:
        values = "  ".join(f"{value:.6g}" for value in run.values)
        print_lines(console, f"  {values}  {run.cell.label}  {run.cell.folder}")
    importances = trials.importances()
    if importances:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in importances.items())
        print_lines(console, f"importance in reaching the best tenth: {shares}")
    if not several:
        # The best of many was lucky too.
        own = [a for a in search.arguments if a.startswith("output=")]
        confirm = ["unimem-sweep", *best[0].cell.overrides.lines, *own, "seed=1,2,3"]
        print_lines(console, f"confirm the best with other seeds: {shlex.join(confirm)}")


def _tell_next(console: Console, search: "Search", missing: int) -> None:
    arguments, said = [*search.arguments], "go on with"
    if missing <= 0:
        said = "for more trials"
        arguments = [a for a in arguments if not a.startswith("trials=")]
        arguments.append(f"trials={2 * search.options.trials}")
    print_lines(console, f"{said}: {shlex.join(['unimem-search', *arguments])}")


def _list(console: Console, search: "Search") -> int:
    from unimem.studies.search.space import in_words

    for name, distribution in search.space.parameters.items():
        print_lines(console, f"{name}: {in_words(distribution)}")
    print_lines(console, f"for example: {search.example.label}  {search.example.folder}")
    return 0


if __name__ == "__main__":
    main()
