"""unimem-show: the picture of who sees whom is the mask of the method."""

import numpy as np
import pytest

from unimem.cli import show

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
