"""Checkpoints that no run of ours wrote, under a right checksum: refused by name at once."""

import copy
import hashlib
import os
from pathlib import Path

import pytest
import torch
from training.conftest import Runs

GATED = ("memory.fusion=gated", "name=a", "evaluation.controls=false", "evaluation.age_documents=0")
STEP = "step-00000005.ckpt"
CANARY = "canary"


class Payload:
    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


def without(*path):
    def change(checkpoint):
        node = checkpoint
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]

    return change


def with_(value, *path):
    def change(checkpoint):
        node = checkpoint
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


WEIGHT = "model.model.embed_tokens.weight"
PROCESS = ("unimem", "processes", 0)
CHANGES = {
    "no step": without("global_step"),
    "no position in the data": without("loops"),
    "no callbacks": with_(None, "callbacks"),
    "no optimizer": with_("x", "optimizer_states"),
    "no state of ours": without("unimem"),
    "no documents": without("unimem", "corpus"),
    "no processes": without("unimem", "processes"),
    "no memory": without(*PROCESS, "bank"),
    "a memory of text": with_("x", *PROCESS, "bank", "position"),
    "a layer of text": with_({0: {"keys": "x"}}, *PROCESS, "bank", "layers"),
    "random state of text": with_("x", *PROCESS, "random", "torch"),
    "random state of another form": with_([1], *PROCESS, "random", "python"),
    "weights of another shape": with_(torch.zeros(2, 2), "state_dict", WEIGHT),
    "a weight is missing": without("state_dict", WEIGHT),
    "a weight too many": with_(torch.zeros(1), "state_dict", "more"),
    "moments of another shape": with_(torch.zeros(1), "optimizer_states", 0, "state", 0, "exp_avg"),
    "no moments": with_([], "optimizer_states", 0, "param_groups"),
    "other settings": with_("0" * 64, "unimem", "settings"),
    "a payload": with_(Payload(), "callbacks", "x"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return Runs(tmp_path_factory.mktemp("finished")).start(*GATED)


def write(runs: Runs, finished: Path, content: object) -> Path:
    """Leave the run with one checkpoint, of this content, under its checksum."""
    runs.copy_at(finished, 5)
    folder = runs.output / "runs" / "a" / "checkpoints"
    for file in folder.iterdir():
        file.unlink()
    torch.save(content, folder / STEP)
    digest = hashlib.sha256((folder / STEP).read_bytes()).hexdigest()
    (folder / f"{STEP}.sha256").write_text(f"{digest}\n")
    return folder.parent


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_of_another_form_is_refused(finished, runs, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    checkpoint = torch.load(finished / "checkpoints" / STEP, weights_only=True)
    CHANGES[name](changed := copy.deepcopy(checkpoint))
    write(runs, finished, changed)
    with pytest.raises(ValueError, match=f"{STEP} is not a checkpoint that this run can go on"):
        runs.start(*GATED, "resume=true")
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("content", [1, [], None, {}, "text", Payload()])
def test_what_is_no_checkpoint_at_all_is_refused(finished, runs, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    run = write(runs, finished, content)
    lines = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"{STEP} is not a checkpoint that this run can go on"):
        runs.start(*GATED, "resume=true")
    assert (run / "metrics.jsonl").read_bytes() == lines and not Path(CANARY).exists()


def test_the_checkpoint_itself_is_continued(finished, runs):
    checkpoint = torch.load(finished / "checkpoints" / STEP, weights_only=True)
    write(runs, finished, checkpoint)
    run = runs.start(*GATED, "resume=true")
    last = Path("model", "model.safetensors")
    assert (run / last).read_bytes() == (finished / last).read_bytes()
