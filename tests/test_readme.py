"""What the README shows works as it stands there."""

import re
import shlex

import torch
from models import make_model

from unimem.config import compose
from unimem.memory.plan import DIMENSIONS, option_names
from unimem.paths import config_root

README = (config_root() / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def test_python_face(tmp_path):
    make_model(layers=22).save_pretrained(tmp_path)
    (code,) = blocks("python")
    names = {"input_ids": torch.zeros(2, 30, dtype=int), "next_ids": torch.ones(2, 5, dtype=int)}
    exec(code.replace("path/to/llama", str(tmp_path)), names)
    assert names["out"].logits.shape == (2, 30, 61)
    assert names["out"].nll.shape == (2, 30)
    assert names["out"].nll[:, 1:].isfinite().all()
    assert names["more"].nll.isfinite().all()


def test_training_commands_compose():
    lines = [line for block in blocks("") for line in block.splitlines()]
    commands = [
        shlex.split(line, comments=True) for line in lines if line.startswith("unimem-train")
    ]
    assert len(commands) >= 3
    for _, *overrides in commands:
        compose(*overrides)


def test_dimensions_and_schemes_are_all_named():
    top = README.split("## Two commands")[0]
    for dimension in DIMENSIONS:
        (row,) = (line for line in top.splitlines() if line.startswith(f"| `memory.{dimension}`"))
        assert set(re.findall(r"`(\w+)`", row)) == set(option_names(dimension))
    (beside,) = re.findall(r"`memory\.positions`.*?\((.*?)\)", top, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", beside)) == set(option_names("positions"))


def test_layout_names_what_exists():
    (layout,) = (block for block in blocks("") if block.startswith("conf/ "))
    package = config_root() / "src" / "unimem"
    for name in re.findall(r"^  (\w[\w.]*/?) ", layout, re.MULTILINE):
        assert (package / name).exists() or (config_root() / "conf" / name).exists(), name
