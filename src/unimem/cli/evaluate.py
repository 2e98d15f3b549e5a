"""unimem-eval: read held-out documents with the model of a finished run."""

from pathlib import Path
from typing import Annotated, Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from unimem.cli.command import launch
from unimem.config import Config, ConfigError, resolve, validate
from unimem.memory.plan import DIMENSIONS
from unimem.results.records import make_numbered_folder
from unimem.settings import Count, Settings, describe


class EvalSettings(Settings):
    """What the command line of `unimem-eval` says."""

    run: Annotated[str, Field(min_length=1)]
    documents: Count | None
    controls: bool
    overrides: list[str]
    output: str | None


def main() -> None:
    """Run `unimem-eval` with the arguments of the command line."""
    launch(run, "eval")


def run(node: DictConfig) -> None:
    """Evaluate, record, and print what was found; a mistake is told without a traceback."""
    try:
        values = cast(dict[str, Any], OmegaConf.to_container(node, throw_on_missing=True))
    except OmegaConfBaseException:
        raise ConfigError("run= is missing; name the folder of a finished run") from None
    try:
        settings = EvalSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(describe(cast(Any, item)) for item in error.errors())) from None
    # What follows imports torch, which takes seconds; a wrong setting must not.
    from unimem.cli.train import set_up_logging
    from unimem.results.records import RESULT, read_result, write_json_atomic

    try:
        recorded = read_result(Path(settings.run))
        config, resolved = recompose(recorded["config"], settings)
        set_up_logging()
        folder, evaluation = evaluate(Path(settings.run), recorded, config, settings.output)
    except (ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(error)) from error
    record = {"run": settings.run, "overrides": settings.overrides, "config": resolved}
    write_json_atomic(folder / RESULT, record | {"evaluation": evaluation})
    print("\n".join(table(evaluation)))
    print(f"results: {folder}")


def recompose(recorded: dict[str, Any], settings: EvalSettings) -> tuple[Config, dict[str, Any]]:
    """Give a run's configuration with other budgets: checked again, and as plain values.

    A recorded option holds its budget twice, by itself and as a flat knob. The option is tied to
    the knob again, so that an override reaches it.

    Raises `ConfigError` for an override of anything but a budget or how documents are read.
    """
    values: dict[str, Any] = {"attention": {"backend": "auto"}} | recorded | {"preset": {}}
    memory, evaluation = dict(values["memory"]), dict(values["evaluation"])
    knobs = {f"memory.{name}" for name in memory.keys() - set(DIMENSIONS)}
    knobs |= {f"evaluation.{name}" for name in evaluation}
    knobs |= {"attention.backend", "memory.device"}
    for override in settings.overrides:
        name, separator, _ = override.partition("=")
        if not separator or name not in knobs:
            raise ConfigError(
                f"overrides=[{override}]: a trained model can only be read with another "
                f"{', '.join(sorted(knobs))}, as name=value"
            )
    for dimension in DIMENSIONS:
        memory[dimension] = {
            name: _tied(given, memory) if isinstance(given, dict) else given
            for name, given in memory[dimension].items()
        }
    evaluation["controls"] = settings.controls
    if settings.documents is not None:
        evaluation["documents"] = settings.documents
    node = OmegaConf.create(values | {"memory": memory, "evaluation": evaluation})
    try:
        merged = OmegaConf.merge(node, OmegaConf.from_dotlist(settings.overrides))
    except OmegaConfBaseException as error:
        raise ConfigError(f"overrides={settings.overrides}: {error}") from None
    assert isinstance(merged, DictConfig)
    return validate(merged), resolve(merged)


def _tied(fields: dict[str, Any], knobs: dict[str, Any]) -> dict[str, Any]:
    return {key: f"${{memory.{key}}}" if key in knobs else fields[key] for key in fields}


def make_folder(run_folder: Path, output: str | None) -> Path:
    """Make the folder of the records, which nobody else writes to.

    Raises `ConfigError` if `output` exists.
    """
    if output is not None:
        try:
            Path(output).mkdir(parents=True)
        except FileExistsError:
            raise ConfigError(f"output={output} exists; name a new folder") from None
        return Path(output)
    return make_numbered_folder(run_folder, "eval")


def evaluate(
    run_folder: Path, recorded: dict[str, Any], config: Config, output: str | None
) -> tuple[Path, dict[str, Any]]:
    """Load the run's weights and documents, evaluate, and give the new folder of the records too.

    Raises ValueError if the documents are no longer those of the run, or the weights do not fit.
    """
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedModel

    from unimem.data.build import build_corpus
    from unimem.evaluation.run import evaluate_all
    from unimem.model.attach import attach, load_memory
    from unimem.training.devices import device_type
    from unimem.training.folder import weights_folder
    from unimem.training.vocabulary import require_vocabulary, with_tokenizer_of

    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    weights = weights_folder(run_folder, recorded["config"])
    corpus = build_corpus(with_tokenizer_of(weights, config.data))
    digest = recorded["corpus"]["digest"]
    if corpus.digest != digest:
        raise ValueError(
            f"data={config.data.kind} is not what the run was trained on: digest "
            f"{corpus.digest[:12]}, but {digest[:12]} then; bring those documents back"
        )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        weights, local_files_only=True, use_safetensors=True, dtype="auto"
    )
    require_vocabulary(str(weights), corpus, config.data)
    attach(model, config.memory, config.attention.backend)
    load_memory(model, weights)
    device = torch.device(device_type(config.trainer))
    folder = make_folder(run_folder, output)
    return folder, evaluate_all(
        cast(PreTrainedModel, cast(torch.nn.Module, model).to(device)),
        corpus,
        segment_length=config.memory.segment_length,
        settings=config.evaluation,
        folder=folder,
    )


def table(evaluation: dict[str, Any]) -> list[str]:
    """Put an evaluation into lines of text."""
    lines = [
        f"{evaluation['documents']} documents, {evaluation['tokens']} tokens scored; "
        f"{evaluation['protocol']}",
        f"{'memory':<25} {'nats/token':>10} {'95 % interval':>18} {'perplexity':>11}",
    ]
    for name, score in evaluation["scores"].items():
        lines.append(
            f"{_cells(name, score['nll'], score['interval'])} {score['perplexity']:>11.3f}"
        )
    for name, bound in evaluation["bounds"].items():
        lines.append(_cells(f"best possible, {name}", bound["nll"], bound["interval"]))
    for name, difference in evaluation["comparisons"].items():
        better = f"better in {difference['better']} of {difference['documents']} documents"
        cells = _cells(name, difference["difference"], difference["interval"])
        lines.append(f"{cells}  {better}")
    lines += [f"not read: {name}: {reason}" for name, reason in evaluation["skipped"].items()]
    return lines + [f"WARNING: {warning}" for warning in evaluation["warnings"]]


def _cells(name: str, mean: float, interval: list[float | None]) -> str:
    low, high = interval
    shown = "one document" if low is None or high is None else f"[{low:.4f}, {high:.4f}]"
    return f"{name:<25} {mean:>10.4f} {shown:>18}"


if __name__ == "__main__":
    main()
