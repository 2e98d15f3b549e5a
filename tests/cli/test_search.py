"""unimem-search as a user types it; what it draws and runs is in tests/studies/test_search.py."""

import subprocess
import sys

import pytest

from unimem.cli import search

DRAWN = ["injection_layer=range(1,3)", "memory.injection.layers=subset(0,2)"]


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Call the command with arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["unimem-search", *arguments])
        code = 0
        try:
            search.main()
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def without(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command where `module` is not installed."""
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = {['unimem', *arguments]!r};"
        "from unimem.cli.search import main; main(); sys.exit('torch' in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_says_how_to_search_and_needs_no_optuna():
    done = without("optuna", "--help")
    assert done.returncode == 0, done.stderr
    for words in (
        "'injection_layer=range(1,22)'",
        "=subset(0,4)'",
        "trials=N",
        "memory.injection:",
    ):
        assert words in done.stdout


def test_without_optuna_it_says_what_to_install():
    done = without("optuna", *DRAWN)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        "unimem-search needs optuna: pip install '.[search]' in the folder of this project\n"
    )


def test_another_module_that_is_missing_is_not_optuna():
    done = without("pydantic", *DRAWN)
    assert "optuna" not in done.stderr and "pydantic" in done.stderr


def test_it_lists_what_it_would_draw_and_runs_nothing(call, tmp_path):
    code, printed, _ = call("injection_layer=range(1,3)", "data=markov", "--dry-run")
    assert code == 0
    assert "injection_layer: a whole number from 1 to 2\nfor example: " in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=markov"], "a search of 0 dimensions"),
        (["injection_layer=range(22,24)", "data=markov"], "but the model has 22 layers (0..21)"),
        (["-m", "seed=1"], "unimem-search takes name=value arguments"),
        (["--resume", "seed=1,2"], "--resume"),
    ],
)
def test_mistakes_are_told_before_it_starts(call, tmp_path, arguments, message):
    code, printed, error = call(*arguments)
    assert code not in (0, None) and message in f"{printed}{error}{code}"
    assert "Traceback" not in error and not list(tmp_path.iterdir())
