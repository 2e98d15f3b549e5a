"""unimem-report: a study's tables and figures as one page."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unimem.results.study_report import write_study_report


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unimem-report` with the arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="unimem-report",
        description="Write report.html, report.md and figures beside the study.json of a study.",
        epilog="Example: unimem-report injection_layer",
    )
    parser.add_argument("study", metavar="STUDY", help="its name, as in outputs/STUDY/study.json")
    parser.add_argument("--output", default="outputs", metavar="FOLDER", help="default: outputs")
    given = parser.parse_args(arguments)
    try:
        print(write_study_report(Path(given.output), given.study))
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
