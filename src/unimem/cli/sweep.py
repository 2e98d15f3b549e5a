"""unimem-sweep: one run for each combination of values."""

from unimem.cli.command import launch
from unimem.cli.train import run


def main() -> None:
    """Run `unimem-sweep` with the arguments of the command line."""
    launch(run, "sweep", multirun=True)


if __name__ == "__main__":
    main()
