"""Options of a folder of one's own: what they can do, and what each mistake in them is answered."""

import pytest
import torch
from helpers.models import make_model, tokens

from unimem.config import ConfigError, compose
from unimem.memory.bank import MemoryBank
from unimem.model.attach import attach
from unimem.model.segments import read, run

HEAD = """
from __future__ import annotations
from unimem.memory.option import option
from unimem.memory.reading.base import PlaceReading, Reading, Selection
"""


@pytest.fixture
def reading(tmp_path, monkeypatch):
    """Write a reading into a folder of one's own, and compose a memory that reads by it."""
    monkeypatch.setenv("UNIMEM_CONFIG_DIR", str(tmp_path))
    folder = tmp_path / "memory.reading"
    folder.mkdir()

    def write(code: str, *overrides: str, knobs: str = ""):
        (folder / "mine.py").write_text(HEAD + code)
        (folder / "mine.yaml").write_text(f"# @package memory\nreading: {{mine: {{}}}}\n{knobs}\n")
        given = ("memory.reading=mine", "memory.injection=all", "memory.segment_length=6")
        return compose(*given, "memory.size=12", *overrides).memory

    return write


ALL = "        return Selection(torch.ones_like(view.taken))\n"


def test_free_slots_and_slots_that_are_read_already_need_no_care(reading):
    """A reading that names every slot reads as `all`, also beside others and in short rows."""
    code = "\nimport torch\n@option\nclass Mine(Reading):\n    def select(self, view):\n" + ALL
    ids = tokens(2, 30)
    for beside in ("", ",position"):
        choice = f"memory.reading=[mine{beside}]"
        memory = reading(code, choice, *(["memory.window=3"] if beside else []))
        other = choice.replace("mine", "all")
        known = compose(
            other, "memory.injection=all", "memory.segment_length=6", "memory.size=12",
            *(["memory.window=3"] if beside else []),
        ).memory  # fmt: skip
        found, expected = (
            read(attach(make_model(), each), ids, lengths=[30, 17]).logits
            for each in (memory, known)
        )
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_helper_classes_may_stand_beside_an_option(reading):
    code = "\nimport torch\nclass Helper: pass\n@option\nclass Mine(Reading):\n"
    code += "    def select(self, view):\n"
    assert reading(code + ALL).plan(4).layers[0].reading.label.endswith("reading=mine")


MISTAKES = {
    "no decorator": (
        "\nclass Mine(Reading):\n    def select(self, view): ...\n",
        r"mine\.py: the class Mine lacks the decorator @option",
    ),
    "two options": (
        "\n@option\nclass One(Reading): ...\n@option\nclass Two(Reading): ...\n",
        r"mine\.py must define one subclass of Reading, and defines One, Two",
    ),
    "no option": ("\nclass Mine: ...\n", r"must define one subclass of Reading, and defines none"),
    "knob without a value": (
        "\n@option\nclass Mine(Reading):\n    far: int = 1\n    def select(self, view): ...\n",
        r"mine\.yaml lacks a value for far, as far: \.\.\.",
    ),
    "no select": ("\n@option\nclass Mine(Reading): ...\n", r"class Mine lacks the method select"),
}


@pytest.mark.parametrize(("code", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_an_options_file_is_told_in_a_sentence(reading, code, message):
    for more in ([], ["memory.far=2"]):
        with pytest.raises(ConfigError, match=message):
            reading(code, *more)


QUEST = """
@option
class Mine(Reading):
    '''Quest (Tang 2024, arXiv 2406.10774): the pages of greatest upper bound of the logit.'''

    page: int
    pages: int

    def select(self, view):
        query, keys = view.rotated()
        pages = keys.unfold(2, self.page, self.page)
        low, high = pages.amin(-1), pages.amax(-1)
        low, high = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (low, high))
        bound = query.clamp_min(0) @ high.mT + query.clamp_max(0) @ low.mT
        best = bound.topk(min(self.pages, bound.shape[-1]), -1).indices
        chosen = bound.new_zeros(bound.shape).scatter(-1, best, 1).bool()
        return Selection(chosen.repeat_interleave(self.page, -1), False)
"""


@pytest.mark.parametrize("positions", ["true", "zero"])
def test_a_reading_can_score_under_the_position_scheme(reading, positions):
    """Pages of one slot are bounded by their logit: Quest then is a search for the best slots."""
    scheme, ids = f"memory.positions={positions}", tokens(2, 40)
    memory = reading(QUEST, scheme, knobs="page: 1\npages: 3")
    given = ("memory.injection=all", "memory.segment_length=6", "memory.size=12", "memory.topk=3")
    search = compose("memory.reading=similarity", *given, scheme).memory
    found, expected = (read(attach(make_model(), each), ids).logits for each in (memory, search))
    torch.testing.assert_close(found, expected)


def test_whole_pages_are_read(reading):
    memory, read_slots = reading(QUEST, knobs="page: 3\npages: 2"), []

    def observer(layer, attention_weights, queries, slots):
        read_slots.append(attention_weights.unflatten(-1, (-1, 3)) > 0)

    marks = {"starts": torch.zeros(1, 4, dtype=torch.bool), "lengths": torch.full((1, 4), 6)}
    model, ids = attach(make_model(), memory), tokens(1, 24).view(1, 4, 6)
    with torch.no_grad():
        run(model, MemoryBank.empty(1), ids, observer=observer, **marks)
    assert read_slots
    for pages in read_slots:
        assert torch.equal(pages.any(-1), pages.all(-1))
        assert (pages.any(-1).sum(-1) == 2).all()


def test_a_scheme_with_several_rotations_refuses_rotated_keys(reading):
    memory = reading(QUEST, "memory.positions=capped", "memory.limit=8", knobs="page: 3\npages: 2")
    with pytest.raises(ValueError, match=r"positions=capped rotates a key differently"):
        read(attach(make_model(), memory), tokens(1, 24))
