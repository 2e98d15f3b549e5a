"""What a run leaves behind, and what it refuses."""

import json
import math
import platform
from datetime import UTC, datetime, timedelta

import pytest
import torch
from training.conftest import metrics, weights
from transformers import LlamaConfig, LlamaForCausalLM

from unimem.config import compose, compose_node, validate
from unimem.data.build import build_corpus
from unimem.evaluation.run import evaluate_all
from unimem.memory.settings import MemorySettings
from unimem.model.attach import attach, load_memory
from unimem.model.load import load_model
from unimem.model.segments import segment_nll
from unimem.runs.folder import recorded_config, weights_folder
from unimem.runs.records import read_result
from unimem.training.checkpoint import AtomicCheckpointIO
from unimem.training.module import NonFiniteLossError
from unimem.training.run import train

RMT = ("method=rmt", "memory.num_soft_tokens=3")


def test_result_says_what_ran_where_and_what_came_out(runs):
    run = runs.start("seed=3")
    result = read_result(run)
    assert run.name == result["name"] == "transformer_xl-2x16-markov-s3"
    assert (result["status"], result["seed"], result["steps"]) == ("finished", 3, 8)
    assert result["memory"]["memory.reading"] == "position"
    assert result["memory"]["memory.window"] == 12
    assert result["config"] == recorded_config(run)
    # 12 slots in 2 layers: keys and values of 2 heads of 4 floats, and a position.
    assert result["state_bytes_per_row"] == 2 * 12 * (2 * 2 * 4 * 4 + 8)
    assert result["tokens_seen"] == metrics(run)[-1]["tokens_seen"]
    assert result["tokens_per_second"] > 0 and result["seconds"] > result["training_seconds"] > 0
    ended = datetime.fromisoformat(result["finished_at"])
    assert timedelta() <= datetime.now(UTC) - ended < timedelta(hours=1)
    assert result["peak_memory_bytes"] > 1e6
    assert result["versions"]["python"] == platform.python_version()
    assert result["versions"]["torch"] == torch.__version__
    assert result["machine"]["threads"] == 1
    assert len(result["corpus"]["digest"]) == 64 and result["corpus"]["skipped"] == {}
    own = result["evaluation"]["scores"]["own"]
    assert own["perplexity"] == pytest.approx(math.exp(own["nll"]), rel=1e-4)


@pytest.mark.parametrize("method", [("method=vanilla",), RMT], ids=["vanilla", "rmt"])
def test_saved_model_is_the_trained_one(runs, tmp_path, method):
    run = runs.start("name=a", method=method)
    config = recorded_config(run)
    saved = compose("method=vanilla", "model=hf", f"model.name={run / 'model'}")
    model = load_model(saved.model, 8, seed=1)
    attach(model, MemorySettings(**config["memory"]))
    load_memory(model, run / "model")
    trained = {k.removeprefix("model."): v for k, v in weights(run).items()}
    loaded = model.state_dict()
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[key], trained[key]) for key in loaded)

    settings = compose("data=markov", *(f"data.{k}={v}" for k, v in config["data"].items()))
    again = evaluate_all(
        model,
        build_corpus(settings.data),
        segment_length=8,
        settings=compose("evaluation.documents=3", "evaluation.batch_size=2").evaluation,
        folder=tmp_path,
    )
    before = read_result(run)["evaluation"]["scores"]["own"]["nll"]
    assert again["scores"]["own"]["nll"] == before


def test_training_learns(runs):
    run = runs.start("trainer.max_steps=60", "trainer.learning_rate=1e-2")
    losses = [line["loss"] for line in metrics(run)]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.1


def test_without_steps_the_model_is_only_read(runs):
    result = read_result(runs.start("name=a", "trainer.max_steps=0"))
    assert result["tokens_seen"] == 0 and result["tokens_per_second"] == 0
    # Random weights are close to guessing among 8 tokens.
    assert result["evaluation"]["scores"]["own"]["nll"] == pytest.approx(math.log(8), abs=0.2)


def test_a_run_that_trains_nothing_keeps_no_copy_of_a_runs_weights(runs):
    trained = runs.start("name=a", method=RMT)
    lines = runs.overrides("name=b", "trainer.max_steps=0", method=RMT)
    start = ["model=hf", f"model.name={trained / 'model'}", "model.tokenizer=bpe"]
    node = compose_node("train", [x for x in lines if not x.startswith("model")] + start)
    read = train(validate(node))
    assert not (read / "model").exists()
    assert weights_folder(read, read_result(read)["config"]) == trained / "model"
    assert weights_folder(trained, read_result(trained)["config"]) == trained / "model"
    losses = [read_result(run)["evaluation"]["scores"]["own"]["nll"] for run in (trained, read)]
    assert losses[0] == losses[1]


def test_an_epoch_reads_every_segment_once(runs):
    run = runs.start("trainer.max_steps=null", "memory.segment_length=16")
    # 6 documents of 40 tokens are 18 segments of at most 16; a step reads 2 rows of one segment.
    assert read_result(run)["steps"] == 9 and metrics(run)[-1]["step"] == 9


def test_same_seed_same_run_other_seed_another(runs):
    first, second, third = (runs.start("seed=1"), runs.start("seed=1"), runs.start("seed=2"))
    assert metrics(first) == metrics(second) != metrics(third)


def test_finished_run_is_not_run_again(runs):
    run = runs.start("name=a")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert runs.start("name=a", "resume=true") == run
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert [p.name for p in after if after[p] != before[p]] in ([], [".lock"])


@pytest.mark.slow
def test_damaged_newest_checkpoint_is_set_aside_and_the_run_still_exact(runs, tmp_path):
    whole = runs.start("name=a")
    runs.output = tmp_path / "copy"
    runs.copy_at(whole, 5)
    folder = runs.output / "runs" / "a" / "checkpoints"
    newest = folder / "step-00000005.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    continued = runs.start("name=a", "resume=true")
    assert metrics(continued) == metrics(whole)
    assert (folder / "step-00000005.ckpt.damaged").exists() and newest.exists()


def test_only_the_newest_checkpoints_are_kept(runs):
    run = runs.start("trainer.checkpoint_every=3", "trainer.keep_checkpoints=2")
    names = sorted(path.name for path in (run / "checkpoints").glob("*.ckpt"))
    assert names == ["step-00000006.ckpt", "step-00000008.ckpt"]
    assert len(list((run / "checkpoints").iterdir())) == 4


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_starts_again(runs):
    whole = runs.start("name=a")
    (whole / "result.json").unlink()
    for path in (whole / "checkpoints").iterdir():
        path.unlink()
    before = metrics(whole)
    assert metrics(runs.start("name=a", "resume=true")) == before


def test_corpus_that_changed_is_refused(runs):
    run = runs.start("name=a", "trainer.checkpoint_every=4")
    (run / "result.json").unlink()
    path = run / "checkpoints" / "step-00000008.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["unimem"]["corpus"] = "0" * 64
    AtomicCheckpointIO().save_checkpoint(saved, path)
    with pytest.raises(ValueError, match="the corpus has changed since the run began"):
        runs.start("name=a", "resume=true", "trainer.checkpoint_every=4")


def test_loss_that_is_not_finite_stops_before_the_update(runs):
    with pytest.raises(NonFiniteLossError, match=r"at step \d, documents \[.*learning_rate"):
        runs.start("name=a", "trainer.learning_rate=1e3", "trainer.warmup_steps=0")
    run = runs.output / "runs" / "a"
    assert not (run / "result.json").exists()
    for path in (run / "checkpoints").glob("*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


def pretrained(folder, dtype):
    """The overrides that name a tiny checkpoint stored in `dtype`, for a corpus of 8 states."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 8}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
    model.to(dtype).save_pretrained(folder)
    return "model=hf", f"model.name={folder}"


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_weights_are_trained_in_float32_however_they_are_stored(runs, tmp_path, stored):
    model = pretrained(tmp_path / "half", stored)
    keep = [o for o in runs.overrides("name=a") if not o.startswith("model")]
    said = []
    node = compose_node("train", [*keep, *model, "trainer.max_steps=2"])
    run = train(validate(node), log=said.append)
    assert all(weight.dtype == torch.float32 for weight in weights(run, 2).values())
    result = read_result(run)
    assert (result["precision"], result["weights_dtype"]) == ("32-true", "float32")
    assert result["config"]["trainer"]["learning_rate"] == 5e-5
    assert "2 steps, learning rate 5e-05, the model's own" in said[0]
    assert "32-true, float32 weights" in said[0]


def test_weights_that_are_not_trained_are_read_as_they_are_stored(runs, tmp_path):
    model = pretrained(tmp_path / "half", torch.bfloat16)
    keep = [o for o in runs.overrides() if not o.startswith("model")]
    found = {}
    for name, more in {"a": (), "b": ("trainer.precision=32-true",)}.items():
        node = compose_node("train", [*keep, *model, f"name={name}", "trainer.max_steps=0", *more])
        result = read_result(train(validate(node)))
        evaluation = result["evaluation"]
        assert evaluation["precision"] == result["precision"]
        assert evaluation["weights_dtype"] == result["weights_dtype"]
        found[name] = result["precision"], result["weights_dtype"]
    assert found == {"a": ("bf16-true", "bfloat16"), "b": ("32-true", "float32")}


@pytest.mark.parametrize(
    ("precision", "keys", "held"),
    [
        ("bf16-mixed", torch.bfloat16, torch.float32),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("32-true", torch.float32, torch.float32),
    ],
)
@pytest.mark.parametrize("steps", [0, 2])
def test_evaluation_computes_in_the_precision_of_the_run(
    runs, monkeypatch, precision, keys, held, steps
):
    seen = set()

    def watched(*args, **kwargs):
        nll, bank, losses = segment_nll(*args, **kwargs)
        seen.update(memory.keys.dtype for memory in bank.layers.values())
        return nll, bank, losses

    monkeypatch.setattr("unimem.evaluation.score.segment_nll", watched)
    run = runs.start("name=a", f"trainer.precision={precision}", f"trainer.max_steps={steps}")
    assert seen == {keys}
    result = read_result(run)
    for record in (result, result["evaluation"]):
        assert record["precision"] == precision
        assert record["weights_dtype"] == str(held).removeprefix("torch.")
    assert result["evaluation"]["state_bytes_per_row"] == result["state_bytes_per_row"]


def test_a_backend_without_gradient_here_is_refused_before_the_run(runs):
    with pytest.raises(ValueError, match="attention.backend=flex fails for .* on cpu: .*backward"):
        runs.start("name=a", "attention.backend=flex")
    assert not (runs.output / "runs" / "a").exists()


def test_gpu_that_is_not_there_is_refused(runs):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="trainer.accelerator=gpu but torch finds no GPU"):
        runs.start("trainer.accelerator=gpu")


@pytest.mark.slow
def test_bfloat16_trains_and_resumes(runs, tmp_path):
    whole = runs.start("name=a", "trainer.precision=bf16-mixed")
    runs.output = tmp_path / "copy"
    runs.copy_at(whole, 3)
    assert metrics(runs.start("name=a", "resume=true", "trainer.precision=bf16-mixed")) == metrics(
        whole
    )
    assert json.loads((whole / "result.json").read_text())["precision"] == "bf16-mixed"
