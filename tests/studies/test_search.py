"""Searches whose runs are over at once, their loss a function of their settings; and real ones."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console
from studies.conftest import TINY, Sweeps

from unimem.config import Config, ConfigError, compose_node, resolve
from unimem.results.study import read_study
from unimem.runs.files import write_json_atomic
from unimem.runs.signature import data_digest
from unimem.studies.cells import Cell
from unimem.studies.run.display import Lines
from unimem.studies.search.journal import Journal
from unimem.studies.search.search import Search, read_search
from unimem.studies.search.trial_runner import TrialRunner
from unimem.studies.search.trials import Trials

SIZE = "memory.size=interval(12,64)"
LAYER = "injection_layer=0,1"
SUBSET = ("memory.injection=layers", "memory.injection.layers=subset(0,3)")


class Killed(BaseException):
    """The search's process is no more."""


class Over:
    """A run that is over."""

    def __init__(self, code: int):
        self._code = code

    def poll(self) -> int:
        return self._code

    def stop(self) -> None: ...

    def kill(self) -> None: ...


class Instant:
    """Runs cells at once. Those without a loss fail; the search is killed at start number `end`."""

    def __init__(self, loss: Callable[[Config], float | None], end: int = 999, slots: int = 1):
        self._loss, self._end, self.slots = loss, end, slots
        self.started: list[str] = []

    def start(self, cell: Cell, slot: int) -> Over:
        if len(self.started) == self._end:
            raise Killed
        self.started.append(cell.label)
        loss = self._loss(cell.config)
        if loss is None:
            return Over(1)
        result = {
            "signature": cell.signature,
            "config": recorded(cell.overrides.lines),
            "corpus": {"digest": data_digest(cell.config.data)},
            "evaluation": {"scores": {"own": {"nll": loss, "perplexity": 2.0}}},
            "state_bytes_per_row": cell.config.memory.flat()["memory.size"],
        }
        cell.folder.mkdir(parents=True)
        write_json_atomic(cell.folder / "result.json", result)
        return Over(0)


@cache
def recorded(overrides: tuple[str, ...]) -> dict[str, Any]:
    return resolve(compose_node("train", overrides))


def size(config: Config) -> int:
    return config.memory.flat()["memory.size"]


def loss(config: Config) -> float:
    return abs(size(config) - 40) + config.memory.injection.get("layers", [0])[0] / 10


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr("unimem.studies.run.runner.POLL", 0)
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def search(tmp_path) -> Callable[..., Search]:
    return lambda *arguments, output="out": read_search(
        [*TINY, f"output={tmp_path / output}", *arguments]
    )


def run(search: Search, launcher: Instant) -> tuple[int, Trials]:
    with closing(Trials(search)) as trials:
        return TrialRunner(trials, launcher, Lines(Console(quiet=True))).run(), trials


def drawn(trials: Trials) -> list[dict]:
    return [trial.params for trial in trials.finished]


def journal(search: Search) -> Path:
    return Path(search.options.output) / search.options.study / "search.journal"


@pytest.mark.slow
def test_as_many_trials_as_asked_and_the_best_of_them(search, monkeypatch):
    monkeypatch.setattr("unimem.studies.search.trials.ENOUGH", 12)
    launcher = Instant(loss)
    found = search(SIZE, LAYER, "trials=12")
    code, trials = run(found, launcher)
    assert code == 0 and len(trials.finished) == 12
    assert len(launcher.started) == len(set(launcher.started)), "a run is repeated"
    best = trials.best()
    assert len(best) == len(launcher.started)
    assert [b.values for b in best] == sorted(b.values for b in best)
    assert best[0].values == [min(trial.values[0] for trial in trials.finished)]
    assert best[0].values[0] == pytest.approx(loss(best[0].cell.config))
    importances = trials.importances()
    assert list(importances) == ["memory.size", "injection_layer"]
    assert sum(importances.values()) == pytest.approx(1)

    again = Instant(loss)
    code, trials = run(found, again)
    assert code == 0 and again.started == [] and len(trials.finished) == 12
    assert trials.count() == f"12 of 12 trials finished, {len(best)} of them different"


def test_the_study_lists_its_runs_for_the_report(search):
    found = search(SIZE, "trials=3")
    _, trials = run(found, Instant(loss))
    study = read_study(Path(found.options.output), "search")
    assert [cell.label for cell in study.cells] == [
        f"memory.size={params['memory.size']}" for params in drawn(trials)
    ]
    assert study.unfinished == [] and study.fields["command"] == "unimem-search"


@pytest.mark.slow
def test_killed_again_and_again_it_draws_the_same(search):
    arguments = (SIZE, *SUBSET, "trials=12")  # the first ten are drawn anywhere
    _, whole = run(search(*arguments, output="whole"), Instant(loss))
    broken = search(*arguments)
    started: list[str] = []
    for end in (0, 1, 7):
        launcher = Instant(loss, end=end)
        with pytest.raises(Killed):
            run(broken, launcher)
        started += launcher.started
    with closing(Journal(journal(broken).parent)) as file:  # killed while it drew
        optuna.load_study(study_name="search", storage=file).ask()
    launcher = Instant(loss)
    code, trials = run(broken, launcher)
    assert code == 0 and drawn(trials) == drawn(whole)
    assert [t.values for t in trials.finished] == [t.values for t in whole.finished]
    started += launcher.started
    assert len(started) == len(set(started)), "a run is repeated"


def test_more_trials_go_on(search):
    _, trials = run(search(SIZE, "trials=2"), Instant(loss))
    first = drawn(trials)
    launcher = Instant(loss)
    code, trials = run(search(SIZE, "trials=4", "jobs=2"), launcher)
    assert code == 0 and len(trials.finished) == 4 and drawn(trials)[:2] == first
    assert len(launcher.started) == 2


def test_runs_of_another_search_are_read(search):
    _, one = run(search(SIZE, "trials=4"), Instant(loss))
    launcher = Instant(loss)
    code, other = run(search(SIZE, "trials=4", "study=other", "direction=maximize"), launcher)
    assert code == 0 and launcher.started == [] and drawn(other) == drawn(one)
    assert other.best()[0].values == [max(trial.values[0] for trial in one.finished)]


def test_several_slots_draw_no_more_than_asked(search):
    launcher = Instant(loss, slots=3)
    code, trials = run(search(SIZE, "trials=4"), launcher)
    assert code == 0 and len(trials.finished) == 4 and len(launcher.started) <= 4


def test_what_cannot_run_is_told_and_another_is_drawn(search, caplog):
    found = search(*SUBSET, "trials=3", "sampler=random")
    code, trials = run(found, Instant(lambda config: 1.0))
    assert code == 0 and len(trials.finished) == 3
    assert not any(params["memory.injection.layers[2]"] for params in drawn(trials))
    assert "impossible" in trials.count()
    with closing(Journal(journal(found).parent)) as file:
        recorded = optuna.load_study(study_name="search", storage=file).get_trials(
            states=[optuna.trial.TrialState.PRUNED]
        )
    for trial in recorded:
        assert trial.user_attrs["reason"] in caplog.text
        nothing = not any(trial.params.values())
        assert ("at least one element" if nothing else "2 layers") in trial.user_attrs["reason"]
    assert {any(trial.params.values()) for trial in recorded} == {True, False}


def test_a_search_gives_up_when_nothing_new_can_run(search, monkeypatch, caplog):
    found = search(SIZE, "trials=5")
    monkeypatch.setattr("unimem.studies.search.trials.MISSES", 3)

    def refuse(self, drawn):
        raise ConfigError("no such run")

    monkeypatch.setattr(Search, "cell", refuse)
    launcher = Instant(loss)
    _, trials = run(found, launcher)
    assert launcher.started == [] and trials.count() == "0 of 5 trials finished, 3 impossible"
    assert "3 draws in a row cannot run" in caplog.text


def test_no_more_is_drawn_once_the_code_has_changed(search, monkeypatch, caplog):
    monkeypatch.setattr("unimem.studies.search.trials.code_changed", lambda: True)
    launcher = Instant(loss)
    _, trials = run(search(SIZE, "trials=2"), launcher)
    assert launcher.started == [] and trials.finished == []
    assert "the code has changed since the search began" in caplog.text


def test_a_failed_run_does_not_count_and_is_not_repeated(search):
    found = search(SIZE, "trials=4")
    launcher = Instant(lambda config: None if size(config) < 50 else 1.0)
    code, trials = run(found, launcher)
    failed = 4 - len(trials.finished)
    assert code == 1 and failed and len(launcher.started) == 4
    assert f"{failed} failed" in trials.count()
    with closing(Journal(journal(found).parent)) as file:
        recorded = optuna.load_study(study_name="search", storage=file).get_trials(
            states=[optuna.trial.TrialState.FAIL]
        )
    assert [trial.user_attrs["reason"] for trial in recorded] == failed * ["exit status 1"]

    again = Instant(lambda config: 2.0)
    code, trials = run(found, again)
    assert code == 0 and len(trials.finished) == 4 and len(again.started) == failed


def test_two_objectives_give_the_runs_that_no_other_beats(search):
    found = search(
        SIZE, LAYER, "trials=12", "objective=[evaluation.scores.own.nll,state_bytes_per_row]"
    )
    code, trials = run(found, Instant(lambda config: 100 - size(config) + loss(config)))
    assert code == 0
    points = [tuple(trial.values) for trial in trials.finished]
    front = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert [tuple(b.values) for b in trials.best()] == sorted(front)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["memory.size=interval(12,65)"], "is of other values to draw from"),
        ([SIZE, LAYER], "is of other values to draw from"),
        ([SIZE, "direction=maximize"], "is of other objectives"),
        ([SIZE, "objective=state_bytes_per_row"], "is of other objectives"),
        ([SIZE, "seed=1"], r"is of other settings, code or data \(trial 0\)"),
        ([SIZE, "memory.window=100"], r"is of other settings, code or data \(trial 0\)"),
    ],
)
def test_a_search_goes_on_with_its_own_trials_only(search, more, message):
    found = search(SIZE, "trials=1")
    run(found, Instant(loss))
    with pytest.raises(ConfigError, match=f"search.journal {message}; give this search another"):
        Trials(search(*more, "trials=2"))
    code, _ = run(search(SIZE, "trials=2", "logger.mode=offline", "logger=wandb"), Instant(loss))
    assert code == 0, "what changes no number is free"


def test_one_process_at_a_time(search):
    found = search(SIZE, "trials=1")
    with closing(Trials(found)), pytest.raises(ConfigError, match="in use by another"):
        Trials(found)
    Trials(found).close()


def test_a_power_cut_leaves_a_journal_that_goes_on(search):
    found = search(SIZE, "trials=2")
    run(found, Instant(loss))
    whole = journal(found).read_text()
    journal(found).write_text(f'{whole}{{"op_code":4,"stu')
    journal(found).with_name("search.journal.lock").touch()
    began = time.monotonic()
    code, trials = run(search(SIZE, "trials=3"), Instant(loss))
    assert code == 0 and len(trials.finished) == 3
    assert journal(found).read_text().startswith(whole)
    assert time.monotonic() - began < 10, "Optuna waits 30 seconds for a lock that is left behind"


def test_an_objective_that_is_not_there_is_told(search):
    with pytest.raises(ConfigError) as error:
        run(search(SIZE, "trials=1", "objective=evaluation.scores.own.nil"), Instant(loss))
    text = str(error.value)
    assert "objective=evaluation.scores.own.nil is not a number of" in text
    assert "did you mean evaluation.scores.own.nll" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a search of 0 dimensions"),
        ([SIZE, "trials=0"], "trials: Input should be greater than 0"),
        ([SIZE, "trials=1,2"], "trials takes one value"),
        ([SIZE, "sampler=grid"], "sampler: Input should be 'tpe' or 'random'"),
        ([SIZE, "direction=up"], "direction.*'minimize' or 'maximize'"),
        (
            [SIZE, "objective=foo.bar"],
            "objective=foo.bar is not.*evaluation.scores.own.nll",
        ),
        ([SIZE, "objective=perplexity"], "objective=perplexity is not a number of result.json"),
        ([SIZE, "objective=evaluation"], "objective=evaluation is not a number"),
        ([SIZE, "objective=[]"], "objective.*at least 1 item"),
        ([SIZE, "objective=[a,b,c]", "direction=[minimize,maximize]"], "2 directions for 3"),
        ([SIZE, "name=a"], "name cannot be set in a search"),
        ([SIZE, "sweeps=topk_window"], "sweeps cannot be set in a search"),
        pytest.param(  # composes twenty draws, as the next
            [SIZE, "memory.tpok=3"], "memory.tpok is not a setting", marks=pytest.mark.slow
        ),
        pytest.param(
            ["injection_layer=range(2,9)"],
            "none of 20 combinations drawn can run",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_mistakes_are_told_before_anything_starts(search, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        search(*arguments)
    assert not list(tmp_path.iterdir())


def test_nothing_of_this_needs_torch(tmp_path):
    code = (
        "import sys; from unimem.studies.search import search, trial_runner;"
        f"search.read_search({[*TINY, SIZE, f'output={tmp_path}']!r});"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_killed_at_work_it_goes_on_to_as_many_trials_and_no_run_twice(sweeps):
    arguments = [
        *TINY, "trainer.max_steps=200", "trainer.checkpoint_every=10", LAYER,
        "memory.size=interval(12,20)", "trials=4", "jobs=2", f"output={sweeps.output}",
    ]  # fmt: skip
    killed = 0
    for steps in (3, 60, 150):
        process = start(sweeps, arguments)
        wanted = sweeps.steps() + steps
        while process.poll() is None and sweeps.steps() < wanted:
            time.sleep(0.01)
        killed += process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(sweeps, arguments)
    out, _ = process.communicate(timeout=200)
    assert killed and process.returncode == 0, out
    assert "4 of 4 trials finished" in out and "best runs (minimize" in out
    study = json.loads((sweeps.output / "search" / "study.json").read_text())
    assert len(study["cells"]) == len(sweeps.cells()) <= 4
    for log in (sweeps.output / "cells").glob("*.log"):
        assert "== started " not in log.read_text().partition("results  ")[2], "run twice"

    starts = sweeps.starts()
    process = start(sweeps, arguments)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and sweeps.starts() == starts
    assert out.count("  before\n") == 4 and "running" not in out


def start(sweeps: Sweeps, arguments: list[str]) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "unimem.cli.search", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    sweeps.processes.append(process)
    return process
