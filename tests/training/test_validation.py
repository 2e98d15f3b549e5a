"""Validation during training: it disturbs nothing, is continued exactly, and chooses weights."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from training.conftest import Runs, metrics, same_weights

from unimem.config import ConfigError, compose
from unimem.data.build import build_corpus
from unimem.evaluation.sample import Sample
from unimem.evaluation.score import score
from unimem.memory.settings import MemorySettings
from unimem.model.attach import attach, load_memory
from unimem.model.load import load_model
from unimem.runs.folder import recorded_config
from unimem.runs.records import read_result
from unimem.training import validation
from unimem.training.validation import ValidationDocuments

# Three are read at the end; two rows at a time make two rounds of the other three.
HELD_OUT = ("data.validation_documents=6", "trainer.validation_documents=3")
EVERY = (*HELD_OUT, "trainer.validate_every=3")


def curve(run) -> list[dict]:
    return [line for line in metrics(run) if "val/nll" in line]


def test_validation_leaves_training_as_it_was(runs, tmp_path):
    plain = runs.start("name=a", *HELD_OUT)
    runs.output = tmp_path / "validated"
    run = runs.start("name=a", *EVERY)
    assert [line for line in metrics(run) if "loss" in line] == metrics(plain)
    assert same_weights(run, plain)
    assert [line["step"] for line in curve(run)] == [3, 6, 8]
    steps = [line["step"] for line in metrics(run)]
    assert steps == sorted(steps)
    assert read_result(run)["weights"] == {"which": "last", "step": 8}
    assert read_result(plain)["validation"] is None


def test_the_curve_is_the_loss_of_documents_that_the_end_does_not_read(runs):
    run = runs.start("name=a", *EVERY)
    config = recorded_config(run)
    saved = compose("method=vanilla", "model=hf", f"model.name={run / 'model'}")
    model = load_model(saved.model, 8, seed=1)
    attach(model, MemorySettings(**config["memory"]))
    load_memory(model, run / "model")
    given = compose("data=markov", *(f"data.{k}={v}" for k, v in config["data"].items()))
    held_out = build_corpus(given.data).validation
    others = [i for i in range(6) if i not in Sample(held_out, 3, None).index]
    last = curve(run)[-1]
    for use, key in (("own", "val/nll"), ("off", "val/nll_off")):
        read = score(
            model, Sample.of(held_out, others, None), segment_length=8, batch_size=2, use=use
        )
        assert last[key] == pytest.approx(np.concatenate(read.nll).mean(dtype=float), rel=1e-6)
    assert last["val/perplexity"] == pytest.approx(np.exp(last["val/nll"]))
    assert last["val/gain"] == pytest.approx(last["val/nll_off"] - last["val/nll"])
    assert read_result(run)["validation"]["also_evaluated"] == 0


CHOOSING = (*EVERY, "trainer.patience=5", "trainer.keep_best=true", "trainer.validate_every=2")


def test_continued_from_any_step_validates_as_if_uninterrupted(runs, tmp_path):
    whole = runs.start("name=a", *CHOOSING)
    expected = read_result(whole)
    for step in (1, 2, 5, 8):
        copies = Runs(tmp_path / f"copy-{step}")
        copies.copy_at(whole, step)
        continued = copies.start("name=a", "resume=true", *CHOOSING)
        assert metrics(continued) == metrics(whole)
        assert same_weights(continued, whole)
        found = read_result(continued)
        assert found["weights"] == expected["weights"]
        assert found["validation"] == expected["validation"]
        assert (
            found["evaluation"]["scores"]["own"]["nll"]
            == (expected["evaluation"]["scores"]["own"]["nll"])
        )


# Steps that are too long: the loss rises again.
WORSE = ("trainer.learning_rate=1.0", "trainer.warmup_steps=6")


def test_the_best_weights_are_saved_and_evaluated(runs):
    run = runs.start("name=a", *CHOOSING, *WORSE, "trainer.keep_checkpoints=2")
    found = read_result(run)
    best = min(curve(run), key=lambda line: line["val/nll"])["step"]
    assert found["weights"] == {"which": "best", "step": best} and best < 8
    assert found["validation"]["best_step"] == best
    kept = run / "checkpoints" / f"best-{best:08d}.ckpt"
    state = torch.load(kept, weights_only=True)["state_dict"]
    model = load_model(
        compose("method=vanilla", "model=hf", f"model.name={run / 'model'}").model, 8, seed=1
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[f"model.{name}"])
    assert [p.name for p in (run / "checkpoints").glob("best-*.ckpt")] == [kept.name]


def test_best_weights_that_are_gone_are_told_and_the_last_ones_taken(runs, tmp_path):
    run = runs.start("name=a", *CHOOSING, *WORSE)
    runs.output = tmp_path / "copy"
    runs.copy_at(run, 8)
    for path in (runs.output / "runs" / "a" / "checkpoints").glob("best-*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"best-.*trainer.keep_best=false evaluates the last"):
        runs.start("name=a", "resume=true", *CHOOSING, *WORSE)
    again = runs.start("name=a", "resume=true", *CHOOSING, *WORSE, "trainer.keep_best=false")
    assert read_result(again)["weights"] == {"which": "last", "step": 8}


def test_training_stops_when_patience_is_over_and_says_why(runs, tmp_path):
    more = (*EVERY, "trainer.patience=1", "trainer.min_improvement=5.0", "trainer.validate_every=2")
    run = runs.start("name=a", *more)
    found = read_result(run)
    # The first validation is the reference; the second is not better by 5 nats.
    assert [line["step"] for line in curve(run)] == [2, 4]
    assert found["steps"] == 4 and found["weights"] == {"which": "last", "step": 4}
    assert "has not improved by more than 5 nats for 1 val" in found["validation"]["stopped_early"]
    assert (run / "checkpoints" / "step-00000004.ckpt").exists()

    # Killed before its result: nothing is trained any more.
    runs.output = tmp_path / "copy"
    runs.copy_at(run, 4)
    again = runs.start("name=a", "resume=true", *more)
    assert metrics(again) == metrics(run)
    assert read_result(again)["validation"] == found["validation"]
    assert (
        read_result(again)["evaluation"]["scores"]["own"]["nll"]
        == (found["evaluation"]["scores"]["own"]["nll"])
    )


@pytest.mark.parametrize("at", [3, 8])
def test_validation_that_a_signal_cut_short_is_made_up_for(runs, tmp_path, monkeypatch, at):
    whole = runs.start("name=a", *EVERY)
    runs.output = tmp_path / "stopped"
    calls = [line["step"] for line in curve(whole)].index(at) * 4 + 1

    def score_then_signal(*args, **kwargs):
        nonlocal calls
        calls -= 1
        if not calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(*args, **kwargs)

    monkeypatch.setattr(validation, "score", score_then_signal)
    with pytest.raises(SystemExit):
        runs.start("name=a", *EVERY)
    run = runs.output / "runs" / "a"
    assert metrics(run) == [line for line in metrics(whole) if line["step"] <= at][:-1]
    monkeypatch.undo()
    assert runs.start("name=a", "resume=true", *EVERY) == run
    assert metrics(run) == metrics(whole)
    assert same_weights(run, whole)


def test_documents_read_at_the_end_are_taken_only_where_others_are_too_few():
    settings = compose("data=markov", "data.length=40", "data.validation_documents=6")
    held_out = build_corpus(settings.data).validation

    def chosen(count, evaluated):
        evaluation = settings.evaluation.model_copy(update={"documents": evaluated})
        made = ValidationDocuments(held_out, count, evaluation)
        return made.index, made.also_evaluated

    assert chosen(2, 3) == ([1, 3], 0)
    assert chosen(3, 3) == ([1, 3, 5], 0)
    assert chosen(5, 3) == ([0, 1, 2, 3, 5], 2)
    assert chosen(2, None) == ([0, 3], 2)
    assert chosen(99, 2) == ([0, 1, 2, 3, 4, 5], 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["trainer.patience=3"], "patience need validate_every.*set trainer.validate_every=50"),
        (["trainer.keep_best=true"], "keep_best need validate_every"),
        (["trainer.validate_every=5", "trainer.strategy=fsdp"], "with strategy=fsdp no process"),
        (["trainer.validate_every=0"], "trainer.validate_every: .*greater than 0"),
    ],
)
def test_settings_that_do_nothing_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        compose(*given)


@pytest.mark.slow
def test_two_processes_share_the_documents_and_agree(runs, start, tmp_path):
    ddp = ("trainer.strategy=ddp", "trainer.devices=2", "trainer.batch_size=1")
    process = start("name=a", *CHOOSING, *ddp)
    _, log = process.communicate(timeout=240)
    assert process.returncode == 0, log
    whole = runs.output / "runs" / "a"
    alone = Runs(tmp_path / "alone").start("name=a", *CHOOSING)
    both, one = curve(whole), curve(alone)
    assert [line["step"] for line in both] == [line["step"] for line in one] == [2, 4, 6, 8]
    assert [line["val/nll"] for line in both] == pytest.approx(
        [line["val/nll"] for line in one], rel=1e-3
    )
    runs.output = tmp_path / "copy"
    runs.copy_at(whole, 5)
    process = start("name=a", *CHOOSING, *ddp, "resume=true")
    _, log = process.communicate(timeout=240)
    assert process.returncode == 0, log
    continued = runs.output / "runs" / "a"
    assert metrics(continued) == metrics(whole)
    assert (
        json.loads((continued / "result.json").read_text())["weights"]
        == (json.loads((whole / "result.json").read_text())["weights"])
    )
