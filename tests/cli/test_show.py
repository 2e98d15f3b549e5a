"""unimem-show: the picture of who sees whom is the mask of the method."""

import subprocess
import sys

import numpy as np
import pytest

from unimem.cli import show
from unimem.paths import config_root

N, LENGTH = show.SEGMENT * show.SEGMENTS, show.SEGMENT
PLACE = np.arange(N)
DISTANCE = PLACE[:, None] - PLACE
SAME = PLACE[:, None] // LENGTH == PLACE // LENGTH
OWN = SAME & (DISTANCE >= 0)


def seen(*overrides):
    return show.who_sees_whom(show.small_config(overrides))[0]


@pytest.mark.parametrize(
    ("overrides", "memory"),
    [
        (["method=vanilla"], np.zeros((N, N), bool)),
        (["method=full_context"], ~SAME & (DISTANCE > 0)),
        (["method=transformer_xl"], ~SAME & (DISTANCE > 0) & (DISTANCE <= LENGTH)),
        (["method=transformer_xl", "memory.size=16", "memory.window=13"],
         ~SAME & (DISTANCE > 0) & (DISTANCE <= 13)),
    ],
)  # fmt: skip
def test_the_picture_is_the_mask(overrides, memory):
    assert np.array_equal(seen(*overrides), OWN + 2 * memory)


def test_a_pattern_that_holds_within_segments_too_is_drawn_there():
    """Sparse Transformer's columns: the own segment is seen as memory is."""
    drawn = seen("method=sparse_transformer")
    assert ((drawn == 1) & ~OWN).sum() == 0 < (OWN & (drawn == 0)).sum()


def test_each_head_picks_topk_slots():
    drawn = seen("method=memorizing_transformer", "memory.topk=2")
    picked = (drawn == 2).sum(1)
    assert (picked[:LENGTH] == 0).all() and (picked[LENGTH:] >= 2).all()


def test_the_command_prints_and_draws(tmp_path, capsys):
    show.main(["method=longformer", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "longformer, layer 0" in printed and printed.count("█") > 100
    assert (tmp_path / "longformer.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=longformr"], "method=longformr is not an option"),
        (["method=unimix", "--layer", "0"], "--layer 0 has no memory; layers with memory: [11, "),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message.replace("[", r"\[")):
        show.main([*arguments, "--out", str(tmp_path)])


def test_a_method_of_ones_own_is_drawn_into_the_folder_whatever_its_name(tmp_path):
    command = [sys.executable, "-m", "unimem.cli.show", "method=mine", "--config-dir", "own"]
    (tmp_path / "own" / "method").mkdir(parents=True)
    text = (config_root() / "conf" / "method" / "transformer_xl.yaml").read_text()
    name = "../../x/transformer_xl"
    (tmp_path / "own" / "method" / "mine.yaml").write_text(
        text.replace("name: transformer_xl", f"name: {name}")
    )
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (drawn,) = (tmp_path / "outputs" / "show").glob("*.png")
    assert drawn.name.endswith("x-transformer_xl.png")


def test_a_folder_that_is_not_there_is_told(tmp_path):
    command = [sys.executable, "-m", "unimem.cli.show", "--config-dir", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "--config-dir nowhere: there is no such folder\n")
