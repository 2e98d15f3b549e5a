"""Processes that are killed: the run goes on with the same command, and ends in the same bits."""

import random
import shutil
import signal
from pathlib import Path

import pytest
from faults.driver import EVERY, STEPS, compare, wait_for_step
from faults.inject import Fault
from helpers.small_methods import SMALL
from training.conftest import XL

KILLED_RUNS = 3
LONG = ("trainer.max_steps=90",)


@pytest.mark.fault(
    "K1",
    "SIGKILL at random moments of training, three in every run",
    "no step beyond the last checkpoint is lost; curve, weights and documents to the bit",
)
@pytest.mark.parametrize("seed", range(KILLED_RUNS))
def test_killed_at_random_moments(disturbed, undisturbed, injected, seed):
    run = disturbed(*LONG)
    moments = random.Random(seed)
    for step in sorted(moments.sample(range(3, 80), 3)):
        process = run.start() if seed == 0 and injected.count == 0 else run.fork()
        wait_for_step(run.run, step, process)
        process.send(signal.SIGKILL, to_all=True)
        assert process.wait() == -signal.SIGKILL
        assert not (run.run / "result.json").exists()
        injected()
        newest = max(run.run.glob("checkpoints/step-*.ckpt.sha256"), default=None)
        assert step <= EVERY or newest is not None
    compared = compare(run.finish(), undisturbed(run.arguments[:-1]))
    assert compared.steps == 90
    injected.held(3)


TEMPORARY = "*/.step-00000010.ckpt.tmp-*"
CHECKPOINT, CHECKSUM = "*/step-00000010.ckpt", "*/step-00000010.ckpt.sha256"
REMOVED = "*/step-00000005.ckpt"
WRITING = [
    Fault("write", TEMPORARY, "before"),
    Fault("write", TEMPORARY, "half", 20),
    Fault("os.fsync", TEMPORARY, "before"),
    Fault("os.fsync", TEMPORARY, "after"),
    Fault("write", "*/.step-00000010.ckpt.sha256.tmp-*", "half"),
    Fault("os.replace", CHECKSUM, "before"),
    Fault("os.replace", CHECKSUM, "after"),
    Fault("os.replace", CHECKPOINT, "before"),
    Fault("os.replace", CHECKPOINT, "after"),
    Fault("os.unlink", f"{REMOVED}.sha256", "before"),
    Fault("os.unlink", f"{REMOVED}.sha256", "after"),
    Fault("os.unlink", REMOVED, "after"),
]


@pytest.mark.fault(
    "K2",
    "SIGKILL at twelve places in the writing of a checkpoint and the removal of the one before",
    "the newest whole one is used; nothing is left behind; to the bit",
)
@pytest.mark.parametrize("some", [WRITING[0::3], WRITING[1::3], WRITING[2::3]], ids="abc")
def test_killed_while_a_checkpoint_is_written(disturbed, undisturbed, injected, some):
    # of three checkpoints, that after step 5 is removed when the one after step 15 is written
    for fault in some:
        run = disturbed()
        run.suffer(fault, TMPDIR="/dev/shm")
        injected()
        assert compare(run.finish(), undisturbed(run.arguments[:-1])).steps == STEPS
        injected.held()
        shutil.rmtree(run.run.parent)


@pytest.mark.fault(
    "K3",
    "SIGKILL before, in and after the line of a step in metrics.jsonl",
    "every line is whole, no step is missing and none is there twice; to the bit",
)
def test_killed_while_metrics_are_written(disturbed, undisturbed, injected):
    run = disturbed()
    for when, number in (("before", 7), ("half", 5), ("after", 6), ("half", 1)):
        run.suffer(Fault("write", "*/metrics.jsonl", when, number))
        injected()
    lines = (run.run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert not lines[-1].endswith("\n")
    assert compare(run.finish(), undisturbed(run.arguments[:-1])).steps == STEPS
    injected.held(4)


MEMORIES = {
    "transformer_xl": XL[1:],
    "memorizing_transformer": ("memory.injection.layers=[1]", "memory.topk=2"),
    "rmt": ("memory.num_soft_tokens=3",),
    **{
        name: SMALL[name].overrides
        for name in ("compressive_transformer", "infini_attention", "infllm")
    },
}


@pytest.mark.fault(
    "K4",
    "SIGKILL in the middle of a document, with six kinds of memory",
    "memory goes on where it was: curve, weights, memory and documents to the bit",
)
@pytest.mark.parametrize("method", MEMORIES)
def test_killed_in_the_middle_of_a_document(disturbed, undisturbed, injected, method):
    run = disturbed(method=(f"method={method}", *MEMORIES[method]))
    run.suffer(Fault("write", "*/metrics.jsonl", "after", 13))
    injected()
    compared = compare(run.finish(), undisturbed(run.arguments[:-1]))
    assert compared.steps == STEPS and compared.documents > 3
    injected.held()


CACHE = [
    Fault("write", "*/tokens.bin", "half", 3),
    Fault("os.fsync", "*/meta.json", "before"),
    Fault("os.rename", "*/cache/*", "before"),
    Fault("os.rename", "*/cache/*", "after"),
    Fault("unimem.data.tokenizer:train_bpe", "*", "after"),
    Fault("write", "*.sha256*", "half"),
]


@pytest.mark.fault(
    "K5",
    "SIGKILL while the tokenizer and the tokens of a corpus are written to the cache",
    "they are complete or made again: the same tokens, and all else to the bit",
)
def test_killed_while_the_cache_is_built(disturbed, undisturbed, injected, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(10):
        words = " ".join(f"word{(i * j) % 7}" for j in range(1, 40))
        (texts / f"{i}.txt").write_text(f"document {i}: {words}\n")
    data = ("data=text", f"data.path={texts}", "data.vocab_size=270", "data.held_out=0.4")
    run = disturbed("trainer.max_steps=4", "-data", *data, f"data.cache={tmp_path}/cache")
    elsewhere = [line for line in run.arguments[:-1] if not line.startswith("data.cache")]
    whole = undisturbed([*elsewhere, f"data.cache={tmp_path}/whole"])
    for fault in CACHE:
        run.suffer(fault)
        injected()
        (tmp_path / "cache").mkdir(exist_ok=True)
        shutil.copytree(tmp_path / "cache", tmp_path / "left")
        compare(run.finish(), whole)
        shutil.rmtree(run.run)
        shutil.rmtree(tmp_path / "cache")
        # and with what the killed process left, once more
        (tmp_path / "left").rename(tmp_path / "cache")
        compare(run.finish(), whole)
        assert tokens(tmp_path / "cache") == tokens(tmp_path / "whole")
        shutil.rmtree(run.run)
        shutil.rmtree(tmp_path / "cache")
        injected.held()


def tokens(cache: Path) -> dict[str, bytes]:
    """Give the content of all stores of a cache, and nothing may lie beside them."""
    found = {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file()
    }
    assert any(name.endswith("tokens.bin") for name in found)
    return found


ENDS = [
    Fault("os.mkdir", "*/runs/a", "after"),
    Fault("write", "*/.config.yaml.tmp-*", "half"),
    Fault("os.replace", "*/config.yaml", "before"),
    Fault("os.replace", "*/config.yaml", "after"),
    Fault("write", "*/model/config.json", "half"),
    Fault("os.fsync", "*/model/*", "before"),
    Fault("write", "*/documents.npz", "half", 2),
    Fault("os.fsync", "*/documents.npz", "after"),
    Fault("write", "*/.result.json.tmp-*", "half"),
    Fault("os.replace", "*/result.json", "before"),
]


@pytest.mark.fault(
    "K6",
    "SIGKILL at four places in the making of a run's folder, and at six after training",
    "the run has no result until it is whole; it goes on, and ends to the bit",
)
@pytest.mark.parametrize("some", [ENDS[:4], ENDS[4:]], ids=["beginning", "end"])
def test_killed_at_the_beginning_and_at_the_end(disturbed, undisturbed, injected, some):
    for fault in some:
        run = disturbed()
        run.suffer(fault)
        injected()
        assert compare(run.finish(), undisturbed(run.arguments[:-1])).steps == STEPS
        injected.held()
        shutil.rmtree(run.run)
