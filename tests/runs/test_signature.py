import re
import shutil
from pathlib import Path

import pytest
from studies.conftest import TINY

from unimem.config import ConfigError, compose
from unimem.data.build import build_corpus
from unimem.runs import signature as module
from unimem.runs.signature import (
    code_changed,
    code_digest,
    data_digest,
    require_cell,
    signature,
)


def of(*overrides: str, digest: str = "d") -> str:
    return signature(compose(*TINY, *overrides), digest)


@pytest.fixture(scope="module")
def plain() -> str:
    return of()


@pytest.mark.parametrize(
    "override",
    ["output=/x", "study=b", "name=a", "resume=true", "logger=wandb", "trainer.log_every=3",
     "trainer.checkpoint_every=9", "trainer.keep_checkpoints=9"],
)  # fmt: skip
def test_what_cannot_change_a_number_does_not_count(plain, override):
    assert of(override) == plain


@pytest.mark.parametrize(
    "override",
    ["seed=1", "trainer.threads=2", "memory.size=13", "model.hidden_size=32", "data.length=41",
     "injection_layer=1", "trainer.precision=bf16-mixed", "evaluation.documents=2"],
)  # fmt: skip
def test_what_can_change_a_number_counts(plain, override):
    assert of(override) != plain


def test_only_the_cell_of_that_name_is_recorded_among_cells(plain):
    cell = compose(*TINY, "study=cells")
    require_cell(cell, f"a-{plain[:12]}", "d")
    require_cell(compose(*TINY, "study=runs"), "a", "d")
    for name, digest in (("a", "d"), (f"a-{plain[:12]}", "other"), (plain[:12], "d")):
        with pytest.raises(ConfigError, match="study=cells: .* choose another study"):
            require_cell(cell, name, digest)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["injection_layer=-1"], ["injection_layer=1"]),
        (["injection_layer=1"], ["memory.injection=layers", "memory.injection.layers=[1]"]),
        (["injection_layer=0.5"], ["injection_layer=1"]),
        (["memory.injection=layers", "memory.injection.layers=upper_half"],
         ["memory.injection=layers", "memory.injection.layers=[1]"]),
        (["memory.positions=true"], ["memory.positions='true'"]),
        (["memory.size=[12,12]"], ["memory.size=12"]),
        (["trainer.max_steps=1e1"], ["trainer.max_steps=10"]),
    ],
)  # fmt: skip
def test_equal_settings_are_one_run(one, other):
    assert of(*one) == of(*other)


def test_the_corpus_counts(plain):
    assert of(digest="e") != plain


def test_a_model_folder_counts_by_its_content_and_not_by_its_place(tmp_path):
    overrides = [o for o in TINY if not o.startswith("model")]

    def started_from(folder) -> str:
        more = ["model=hf", f"model.name={folder}", "model.tokenizer=bpe"]
        return signature(compose(*overrides, *more), "d")

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    assert started_from(tmp_path / "a") == started_from(tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").write_bytes(b"weighty")
    assert started_from(tmp_path / "c") != started_from(tmp_path / "a")


def test_data_digest_is_the_corpus_own():
    settings = compose(*TINY).data
    assert data_digest(settings) == build_corpus(settings).digest


def test_the_code_that_makes_numbers_counts(tmp_path, monkeypatch):
    copy = tmp_path / "unimem"
    shutil.copytree(Path(module.__file__).parents[1], copy)
    monkeypatch.setattr(module, "__file__", str(copy / "studies" / "signature.py"))
    code_digest.cache_clear()
    before = of()
    (copy / "cli" / "sweep.py").write_text("")
    assert not code_changed()
    state = copy / "memory" / "state.py"
    text = state.read_text()
    state.write_text(f'# a comment\n{text}\n\ndef more(x):\n    """Say so."""\n    return x\n')
    assert code_changed(), "a function"
    said = re.sub(r'^( +""")(?=\w)', r"\1In other words: ", text, flags=re.MULTILINE)
    assert said.count("In other words") > 10
    state.write_text(said.replace("\n\n\n", "\n\n# more\n\n"))
    assert not code_changed(), "no comment and no docstring"
    state.write_text(text + "# changed\nMORE = 1\n")
    assert code_changed()
    assert of() == before, "one process, one code"
    code_digest.cache_clear()
    assert of() != before
    code_digest.cache_clear()
