"""A finished run is trained on by the command that the refusal names."""

import shlex
import subprocess
import sys

import pytest
from training.conftest import TINY, XL

from unimem.runs.records import read_result


def train(*arguments: str, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "unimem.cli.train", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def named_command(log: str) -> list[str]:
    [line] = [line for line in log.splitlines() if line.startswith("  unimem-train ")]
    return shlex.split(line)[1:]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["data=markov", "data=text"])
def test_more_steps_go_on_from_the_weights(tmp_path, data):
    lines = [line for line in TINY if not line.startswith("data")]
    if data == "data=markov":
        lines += [line for line in TINY if line.startswith("data")]
    else:
        texts = tmp_path / "texts"
        texts.mkdir()
        for i in range(4):
            text = " ".join(f"word{n * (i + 1) % 97}" for n in range(400))
            (texts / f"{i}.txt").write_text(text)
        lines += [data, f"data.path={texts}", "data.vocab_size=300", "data.held_out=0.5"]
    lines += [*XL, "memory.fusion=gated", "name=a", "resume=auto"]
    first = train(*lines, "trainer.max_steps=2", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    again = train(*lines, "trainer.max_steps=2", cwd=tmp_path)
    assert again.returncode == 0 and "is finished; there is nothing to continue" in again.stdout
    more = train(*lines, "trainer.max_steps=5", cwd=tmp_path)
    assert more.returncode == 1 and "Traceback" not in more.stderr
    assert "  trainer.max_steps: 5, was 2" in more.stderr
    assert "the optimizer, the schedule of the learning rate" in more.stderr
    command = named_command(more.stderr)
    assert "trainer.max_steps=3" in command and "name=a-2" in command
    done = train(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "outputs" / "runs" / "a-2")
    before = read_result(tmp_path / "outputs" / "runs" / "a")
    assert result["steps"] == 3
    assert result["corpus"] == before["corpus"] and result["parameters"] == before["parameters"]
    rates = [r["config"]["trainer"]["learning_rate"] for r in (before, result)]
    assert rates[0] == rates[1]


@pytest.mark.slow
def test_documents_of_another_vocabulary_are_told(tmp_path):
    lines = [*TINY, "name=a", "trainer.max_steps=1"]
    assert train(*lines, cwd=tmp_path).returncode == 0
    other = train(*lines, "data.states=5", "resume=true", cwd=tmp_path)
    assert other.returncode == 1
    assert "are no start for it: " in other.stderr and "token ids would mean" in other.stderr
