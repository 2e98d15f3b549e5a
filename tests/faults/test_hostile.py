"""Files and names of others run no code, learn no secret, and reach nothing outside the output."""

import gzip
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults.disks import mounts
from faults.harm import TextRuns, everything, write_texts
from training.conftest import TINY, XL, Runs, metrics, same_weights

from unimem.config import ConfigError, compose

NAMES = [
    "..", ".", "../x", "../../x", "/x", "/tmp/x", "a/b", "a/../../x", "~", "~root", ".hidden",
    "-flag", "a b", "a\nb", "a\tb", "a;b", "a|b", "$HOME", "$(id)", "`id`", "a*", "a?", "a\\b",
    "a:b", "é", "名", "a" * 129, "%2e%2e", "<a>", '"',
]  # fmt: skip


@pytest.mark.fault("X3", "a name of a run or study leads elsewhere", "refused, nothing is written")
def test_hostile_names_are_refused(tmp_path, injected):
    before = everything(tmp_path)
    for i, name in enumerate(NAMES):
        setting = ("name", "study")[i % 2]
        quoted = "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"
        with pytest.raises(ConfigError) as told:
            compose(*TINY, *XL, f"output={tmp_path / 'out'}", f"{setting}={quoted}")
        assert setting in str(told.value)
        injected()
        injected.held()
    assert everything(tmp_path) == before and len(NAMES) == 30


class Payload:
    """What writes a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.fault("X1", "a checkpoint holds code, under a right sha256", "refused; it is not run")
def test_code_in_a_checkpoint_is_not_run(tmp_path, injected):
    runs = Runs(tmp_path / "out")
    run = runs.start("name=a")
    (run / "result.json").unlink()
    path = max((run / "checkpoints").glob("*.ckpt"))
    torch.save({"unimem": Payload(tmp_path / "canary")}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}\n")
    injected()
    with pytest.raises(ValueError, match="it holds more than tensors and plain values"):
        runs.start("name=a", "resume=true")
    assert not (tmp_path / "canary").exists()
    injected.held()


SECRETS = {
    "HF_TOKEN": "hf_canary-of-the-hub",
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-cloud",
    "WANDB_API_KEY": "canary0" * 5 + "abcde",
}


@pytest.mark.fault("X2", "secrets are in the environment", "they are in no file and no output")
def test_no_secret_is_written(tmp_path, commands, injected):
    own = {"HOME": str(tmp_path / "home"), "WANDB_MODE": "offline"}
    runs = Runs(tmp_path / "out")
    process = commands.fork(*runs.overrides("name=a", "logger=[wandb,csv]"), **own, **SECRETS)
    assert process.wait() == 0, process.said
    for secret in SECRETS.values():
        injected()
        for path in (p for p in tmp_path.rglob("*") if p.is_file()):
            assert secret.encode() not in path.read_bytes(), path
        assert secret not in process.said
        injected.held()
    assert list((tmp_path / "out" / "runs" / "a").glob("wandb/*/*.wandb"))


WITHOUT = """
import sys
for name in ("wandb", "submitit", "optuna", "tensorboard"):
    sys.modules[name] = None
from unimem.cli.train import main
sys.argv = ["unimem-train", *sys.argv[1:]]
main()
"""


@pytest.mark.fault("L2", "W&B, submitit, Optuna and TensorBoard cannot be imported", "a run works")
def test_a_run_needs_none_of_the_optional_packages(tmp_path, injected):
    line = Runs(tmp_path / "out").overrides("name=a")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *line], capture_output=True, text=True, check=False
    )
    injected()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "runs" / "a" / "result.json").exists()
    injected.held()


@mounts
@pytest.mark.fault("L1", "there is no network, not even loopback", "a run works")
def test_a_run_needs_no_network(tmp_path, injected):
    texts = write_texts(tmp_path / "texts")
    line = TextRuns(tmp_path / "out", texts, tmp_path / "cache").overrides("name=a")
    command = ["unshare", "-n", sys.executable, "-m", "unimem.cli.train", *line]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    injected()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "runs" / "a" / "result.json").exists()
    injected.held()


BAD: dict[str, bytes] = {
    "empty.txt": b"",
    "latin.txt": "größer".encode("latin-1"),
    "utf16.txt": "text".encode("utf-16"),
    "cut.txt": "größer".encode()[:3],
    "bad.txt.gz": b"no gzip",
    "half.txt.gz": gzip.compress(b"text " * 999)[:40],
    "bad.txt.bz2": b"no bz2",
    "bad.txt.xz": b"no xz",
    "bad.txt.zst": b"no zst",
    "bad.parquet": b"no parquet",
    "text.jsonl": b"no json\n",
    "list.jsonl": b"[1]\n",
    "number.jsonl": b'{"text": 3}\n',
    "null.jsonl": b'{"text": null}\n',
    "other.jsonl": b'{"words": "a"}\n',
    "surrogate.jsonl": b'{"text": "\\ud800"}\n',
    "deep.jsonl": b"[" * 100_000 + b"\n",
    "torn.jsonl": b'{"text": "to',
    "bytes.csv": b"text\n\xff\n",
    "lonely.csv": b"other\na\n",
}


@pytest.mark.fault("B1", "a document cannot be read", "it is named; the run equals one without it")
def test_bad_documents_are_named_and_left_out(tmp_path, caplog, injected):
    good = write_texts(tmp_path / "good")
    whole = TextRuns(tmp_path / "whole", good, tmp_path / "cache").start("name=a")
    both = write_texts(tmp_path / "both")
    for name, data in BAD.items():
        (both / name).write_bytes(data)
        injected()
    caplog.clear()
    run = TextRuns(tmp_path / "out", both, tmp_path / "cache").start("name=a")
    assert metrics(run) == metrics(whole) and same_weights(run, whole)
    counts = re.findall(r": (\d+) documents ", caplog.text)
    assert sum(map(int, counts)) == len(BAD), caplog.text
    injected.held(len(BAD))
