"""Records of training: sums over tokens, steps that increase, lines that survive a kill."""

import json
import math
import resource
from itertools import pairwise

import pytest
from training.conftest import Runs, metrics

from unimem.training.metrics import MetricsFile


def test_records_between_logs_are_sums_and_not_means_of_means(runs, tmp_path):
    every = metrics(runs.start("name=a"))
    rare = metrics(Runs(tmp_path / "rare").start("name=a", "trainer.log_every=3"))
    assert [line["step"] for line in rare] == [1, 3, 6, 8]
    seen = 0
    for line, first, last in zip(rare, (0, 1, 3, 6), (1, 3, 6, 8), strict=True):
        window = every[first:last]
        totals = [0, *(w["tokens_seen"] for w in every)][first : last + 1]
        counts = [after - before for before, after in pairwise(totals)]
        nll = sum(w["loss"] * n for w, n in zip(window, counts, strict=True))
        assert line["loss"] == pytest.approx(nll / sum(counts), rel=1e-12)
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))
        seen += sum(counts)
        assert line["tokens_seen"] == seen
    # The last token of a document has no target.
    assert 8 * 2 * 7 <= seen < 8 * 2 * 8


def test_window_that_spans_a_checkpoint_is_whole_after_resume(runs, tmp_path):
    whole = runs.start("name=a", "trainer.log_every=4")
    copies = Runs(tmp_path / "copy")
    copies.copy_at(whole, 3)
    assert metrics(copies.start("name=a", "resume=true", "trainer.log_every=4")) == metrics(whole)


def test_lines_beyond_a_step_and_broken_ones_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.keep_until(0)
    assert not path.exists()
    for step in (1, 5, 10, 15):
        file({"step": step})
    with path.open("a") as handle:
        handle.write('{"step": 2')
    file.keep_until(10)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 5, 10]
    file({"step": 11})
    assert path.read_text().endswith('{"step": 10}\n{"step": 11}\n')


def test_learning_rate_and_norm_are_those_of_the_step(runs):
    lines = metrics(runs.start("name=a", "trainer.learning_rate=0.5", "trainer.warmup_steps=4"))
    rates = [line["learning_rate"] for line in lines]
    assert rates[:5] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])
    assert rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)
    assert all(line["gradient_norm"] > 0 for line in lines)


def test_lines_that_find_no_room_are_written_later(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, hard))
    try:
        for step in range(1, 5):
            file({"step": step, "loss": 1.5})
        assert path.read_text() == '{"step": 1, "loss": 1.5}\n'  # no part of another line
        with pytest.raises(OSError, match=r"metrics.jsonl cannot be written: File too large"):
            file.settle()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caplog.text.count("its lines are kept") == 1
    file({"step": 5, "loss": 1.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
