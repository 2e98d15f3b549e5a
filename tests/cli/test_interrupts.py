"""Ctrl-C and a closed pipe end a command without a traceback, whatever it is doing."""

import subprocess
import sys

import pytest

KILL = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


def run(code: str, tmp_path, argv: str = "unimem-train") -> "subprocess.CompletedProcess[str]":
    (tmp_path / "heavy.py").write_text(KILL)
    start = f"import sys; sys.argv = [{argv!r}]; sys.path.insert(0, {str(tmp_path)!r})"
    code = f"{start}\nimport unimem.cli\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "code",
    [
        KILL,
        "try:\n    import heavy\nexcept BaseException as e:\n    raise RuntimeError('lazy') from e",
    ],
)
def test_ctrl_c_is_no_traceback(code, tmp_path):
    done = run(code, tmp_path)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_closed_output_is_no_traceback(tmp_path):
    done = run("raise BrokenPipeError", tmp_path)
    assert (done.returncode, done.stderr) == (1, "")


def test_another_error_is_shown(tmp_path):
    done = run("1 / 0", tmp_path)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_a_program_that_imports_the_commands_keeps_its_handlers(tmp_path):
    code = "import signal; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    assert run(code, tmp_path, argv="my_script.py").returncode == 0
