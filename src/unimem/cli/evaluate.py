"""unimem-eval: evaluate the model of a finished run on held-out documents."""

import logging
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from unimem.cli import leave, say
from unimem.cli.command import launch, take_config_dir
from unimem.cli.reading import may_share_documents, reads_other_data, recompose, require_tokenizer
from unimem.config import Config, ConfigError, compose_node
from unimem.paths import own_config
from unimem.runs.files import make_numbered_folder, write_result
from unimem.runs.folder import weights_folder
from unimem.runs.layout import RESULT
from unimem.runs.records import read_result
from unimem.settings import Count, Settings, describe
from unimem.studies.cells import parse
from unimem.training.out_of_memory import (
    OUT_OF_MEMORY,
    OutOfMemoryError,
    evaluation_knobs,
    explain_oom,
)
from unimem.words import counted, system_error

logger = logging.getLogger(__name__)

LABELS = {
    "own": "own memory",
    "off": "memory off",
    "other": "another document's memory",
    "bound_none": "best possible, without memory",
    "bound_unlimited": "best possible, with unlimited memory",
    "bound_memory": "best possible, with this memory",
}
"""Columns of `documents.npz` in words."""


class EvalSettings(Settings):
    """What `conf/eval.yaml` holds; other arguments change settings of the run."""

    run: Annotated[str, Field(min_length=1)]
    documents: Count | None
    controls: bool
    overrides: list[str]
    output: str | None


TAKES = "unimem-eval takes name=value arguments, one value each; --help shows them"


def main() -> None:
    """Run `unimem-eval` with the arguments of the command line."""
    take_config_dir()
    arguments = sys.argv[1:]
    if {"-m", "--multirun"} & set(arguments):
        leave(TAKES)
    if any(argument.startswith("-") for argument in arguments):
        launch(_refuse, "eval")  # --help and other flags that only show something
        return
    own, others = _split(arguments)
    handlers = {number: signal.signal(number, _exit) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        parse(own)
        run(compose_node("eval", own), others)
    except ConfigError as error:
        leave(error)
    except OutOfMemoryError as error:
        say(error, file=sys.stderr)
        sys.exit(OUT_OF_MEMORY)
    except KeyboardInterrupt:
        say("interrupted; nothing is recorded", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _refuse(node: DictConfig) -> None:
    raise ConfigError(TAKES)


def _exit(number: int, frame: object) -> None:
    """End as an exception does, so that a half-written folder is removed."""
    sys.exit(128 + number)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the command's own arguments from overrides of the run's settings."""
    own: list[str] = []
    others: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "overrides":
            try:
                parse([argument])
            except ConfigError:
                each = " ".join(part.strip(" '\"") for part in value.strip("[]").split(","))
                leave(f"{argument}: write each override as an argument of its own: {each}")
        is_own = not equals or name in EvalSettings.model_fields
        (own if is_own else others).append(argument)
    return own, others


def run(node: DictConfig, others: Sequence[str] = ()) -> None:
    """Evaluate, record, and print what was found; a mistake is told without a traceback.

    Args:
        node: `conf/eval.yaml` as composed.
        others: overrides of the run's own settings, which come after `node.overrides`.
    """
    try:
        values = cast(dict[str, Any], OmegaConf.to_container(node, throw_on_missing=True))
    except OmegaConfBaseException:
        raise ConfigError("run= is missing; name the folder of a finished run") from None
    try:
        settings = EvalSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(describe(cast(Any, item)) for item in error.errors())) from None
    place = Path(settings.run)
    overrides = [*settings.overrides, *others]
    try:
        recorded = _read_run(place)
        config = _recompose(recorded, settings, overrides)
        if reads_other_data(overrides):
            require_tokenizer(config.data, weights_folder(place, recorded["config"]))
        # What follows imports torch, which takes seconds; a wrong setting must not.
        from unimem.cli.train import set_up_logging

        set_up_logging()
        with explain_oom("evaluating", lambda: evaluation_knobs(config), "nothing is recorded"):
            folder, record = evaluate(place, recorded, config, overrides, settings.output)
    except (ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(system_error(error)) from error
    say("\n".join([f"corpus: {record['corpus']['summary']}", *table(record["evaluation"])]))
    say(f"results: {folder}")


def _read_run(place: Path) -> dict[str, Any]:
    recorded = read_result(place)
    if "run" in recorded:
        of = recorded["run"]
        raise ConfigError(f"run={place} is the record of an evaluation; name the run itself, {of}")
    missing = [key for key in ("corpus", "evaluation", "signature") if key not in recorded]
    if missing:
        raise ConfigError(f"{place / RESULT} is not the record of a run: no {', '.join(missing)}")
    return recorded


def _recompose(
    recorded: dict[str, Any], settings: EvalSettings, overrides: Sequence[str]
) -> Config:
    first = [f"evaluation.controls={str(settings.controls).lower()}"]
    if settings.documents is not None:
        if "evaluation.documents" in parse(overrides):
            raise ConfigError("documents and evaluation.documents are one setting: give one")
        first.append(f"evaluation.documents={settings.documents}")
    try:
        return recompose(recorded["config"], [*first, *overrides], settings.run)
    except ConfigError as error:
        if own_config() is None and (folder := recorded.get("config_dir")):
            raise ConfigError(
                f"{error}\nthe run was started with --config-dir {folder}: "
                "name that folder again if the options are there"
            ) from None
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{Path(settings.run) / RESULT}: its config cannot be read "
            f"({type(error).__name__}: {error})"
        ) from None


@contextmanager
def new_folder(run_folder: Path, output: str | None) -> Iterator[Path]:
    """Make the folder of the records, which nobody else writes to.

    It is removed again if an error or a signal comes before the records are complete. Raises
    `ConfigError` if `output` exists.
    """
    if output is None:
        folder = make_numbered_folder(run_folder, "eval")
    else:
        folder = Path(output)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise ConfigError(f"output={output} exists; name a new folder") from None
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def evaluate(
    run_folder: Path,
    recorded: dict[str, Any],
    config: Config,
    overrides: Sequence[str],
    output: str | None,
) -> tuple[Path, dict[str, Any]]:
    """Load the run's weights and the documents, evaluate, record; return folder and record.

    Raises ValueError if documents that nobody changed are no longer those of the run, or if the
    weights cannot be loaded or do not fit.
    """
    import torch
    from transformers import PreTrainedModel

    from unimem.data.build import build_corpus
    from unimem.evaluation.run import evaluate_all
    from unimem.evaluation.sample import Sample
    from unimem.evaluation.tokens import FILE_NAME
    from unimem.model.attach import attach, load_memory
    from unimem.model.load import load_pretrained
    from unimem.runs.environment import git_commit, machine, versions
    from unimem.training.devices import device_type
    from unimem.training.fits import require_fit
    from unimem.training.loggers import mirror_evaluation
    from unimem.training.vocabulary import require_vocabulary, with_tokenizer_of

    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    weights = weights_folder(run_folder, recorded["config"])
    other_data = reads_other_data(overrides)
    data = with_tokenizer_of(weights, config.data)
    if other_data:
        config = config.model_copy(update={"data": data})
    corpus = build_corpus(data, train=not other_data)
    if other_data and may_share_documents(recorded["config"]["data"], data.model_dump()):
        logger.warning(
            "data=%s is divided into other splits than in the run: documents that it was trained "
            "on may be among those held out now",
            data.kind,
        )
    digest = recorded["corpus"]["digest"]
    if corpus.digest != digest and not other_data:
        raise ValueError(
            f"data={config.data.kind} is not what the run was trained on: digest "
            f"{corpus.digest[:12]}, but {digest[:12]} then; bring those documents back, or name "
            "other ones to evaluate on, with data=..."
        )
    require_vocabulary(str(weights), corpus, data)
    model = load_pretrained(weights, str(weights), local_files_only=True)
    attach(model, config.memory, config.attention.backend)
    load_memory(model, weights)
    device = torch.device(device_type(config.trainer))
    num_layers = model.config.num_hidden_layers
    asked = config.evaluation
    held_out = Sample(corpus.validation, asked.documents, asked.max_tokens)
    require_fit(
        config,
        model,
        trained=[],
        held_out=[held_out.length(i) for i in range(len(held_out))],
        device=device,
        dtype=model.dtype,
    )
    with new_folder(run_folder, output) as folder:
        evaluation = evaluate_all(
            cast(PreTrainedModel, cast(torch.nn.Module, model).to(device)),
            corpus,
            segment_length=config.memory.segment_length,
            settings=config.evaluation,
            folder=folder,
            precision=_precision(recorded, config),
        )
        record = {
            "status": "finished",
            "name": f"{run_folder.absolute().name}/{folder.name}",
            "run": str(run_folder),
            "signature": recorded["signature"],
            "study": config.study,
            "seed": config.seed,
            "method": config.method.name,
            "memory": config.memory.flat(num_layers),
            "overrides": list(overrides),
            "corpus": {
                "digest": corpus.digest,
                "trained_on": digest,
                "vocabulary": corpus.vocabulary,
                "summary": corpus.summary(),
                "skipped": corpus.skipped,
            },
            "evaluation": evaluation,
            "versions": versions(),
            "commit": git_commit(),
            "machine": machine(),
            "config": config.record(),
        }
        write_result(folder, record, [FILE_NAME])
    if command := mirror_evaluation(config, overrides, evaluation, folder, run_folder):
        say(f"W&B: to send it: {command}")
    return folder, record


def _precision(recorded: dict[str, Any], config: Config) -> str:
    """Return the precision that the run had, wherever it ran, unless another is asked for."""
    from unimem.training.devices import chosen_precision

    if config.trainer.precision == recorded["config"]["trainer"]["precision"]:
        return recorded["precision"]
    return chosen_precision(config.trainer)


def table(evaluation: dict[str, Any]) -> list[str]:
    """Put an evaluation into lines of text."""
    lines = [
        f"{counted(evaluation['documents'], 'document')}, {evaluation['tokens']} tokens scored; "
        f"{evaluation['protocol']}",
        f"{'loss':<{_WIDTH}} {'nats/token':>10} {'95 % interval':>18} {'perplexity':>11}",
    ]
    for name, score in evaluation["scores"].items():
        cells = _cells(LABELS[name], score["nll"], score["interval"])
        perplexity = score["perplexity"]
        lines.append(f"{cells} {'-' if perplexity is None else f'{perplexity:.3f}':>11}")
    for name, bound in evaluation["bounds"].items():
        lines.append(_cells(LABELS[f"bound_{name}"], bound["nll"], bound["interval"]))
    for name, difference in evaluation["comparisons"].items():
        better = (
            f"lower in {difference['better']} of {counted(difference['documents'], 'document')}"
        )
        other = LABELS[name.removeprefix("own-")]
        cells = _cells(f"own memory - {other}", difference["difference"], difference["interval"])
        lines.append(f"{cells}  {better}")
    lines += [
        f"left out: {LABELS.get(name, name)}: {reason}"
        for name, reason in evaluation["skipped"].items()
    ]
    return lines + [f"WARNING: {warning}" for warning in evaluation["warnings"]]


_WIDTH = 49


def _cells(name: str, mean: float | None, interval: list[float | None]) -> str:
    low, high = interval
    shown = "one document" if low is None or high is None else f"[{low:.4f}, {high:.4f}]"
    level = "not a number" if mean is None else f"{mean:.4f}"
    return f"{name:<{_WIDTH}} {level:>10} {shown:>18}"


if __name__ == "__main__":
    main()
