"""The command that trains on from the weights of a finished run."""

import itertools
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

from unimem.config import ConfigError
from unimem.overrides import Overrides, literal
from unimem.studies.cells import make_draft, parse
from unimem.studies.recorded_run import recorded_run

LEFT_OUT = ("model", "name", "resume")
"""What another run has of its own."""


def train_on(folder: Path, given: Sequence[str]) -> str:
    """Return the command that starts a new run from a finished run's weights, with these settings.

    Its steps are those that are left, if more are asked for than the finished run took.

    Args:
        folder: of the finished run.
        given: the overrides of `unimem-train` that name the finished run.
    """
    kept = parse(given).without(LEFT_OUT)
    try:
        with _beside_hydra():
            return _command(folder, kept)
    except (ConfigError, OSError) as error:
        return (
            "start a run of another name, name=...; the weights of the finished one are no start "
            f"for it: {error}"
        )


def _command(folder: Path, kept: Overrides) -> str:
    """Compose the run. Raises `ConfigError` if it cannot be."""
    base = recorded_run(folder)
    before = base.config.trainer.max_steps
    now = make_draft("", kept, base).config.trainer.max_steps
    if before is not None and now is not None and 0 < before < now:
        kept |= parse([f"trainer.max_steps={now - before}"])
    draft = make_draft("", kept | parse([f"name={literal(_free_name(folder))}"]), base)
    draft.require_vocabulary()
    return "\n".join(
        [
            "start a run of another name, name=..., or train on from its weights:",
            f"  {shlex.join(['unimem-train', *draft.overrides.lines])}",
            "that is a new run: it takes over the weights of the model, and of memory where they "
            "fit, and the tokenizer; the optimizer, the schedule of the learning rate, the order "
            "of documents and what memory holds start anew",
        ]
    )


@contextmanager
def _beside_hydra() -> Iterator[None]:
    """Let settings be composed while Hydra runs this command."""
    instance = GlobalHydra.instance()
    running, instance.hydra = instance.hydra, None
    try:
        yield
    finally:
        instance.hydra = running


def _free_name(folder: Path) -> str:
    """Return the first of `NAME-2`, `NAME-3`, ... that no run has yet."""
    for number in itertools.count(2):
        name = f"{folder.name}-{number}"
        if not folder.with_name(name).exists():
            return name
    raise AssertionError("unreachable")
