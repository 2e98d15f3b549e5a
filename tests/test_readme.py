"""What the README and the other pages show works as it stands there."""

import re
import shlex
import subprocess
import tomllib

import pytest
import torch
import yaml
from helpers.models import make_model

import unimem
from unimem.config import compose
from unimem.memory.registry import DIMENSIONS, option_names
from unimem.paths import config_root

README = (config_root() / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def test_python_face(tmp_path):
    make_model(layers=4).save_pretrained(tmp_path)
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


PAGES = [*config_root().glob("*.md"), *config_root().glob("docs/**/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(config_root())))
def test_links_lead_somewhere(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = link.partition("#")
        if place.startswith("http"):
            continue
        file = page.parent / place if place else page
        assert file.exists(), link
        if anchor and file.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            names = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in names, link


def test_every_page_is_listed():
    index = (config_root() / "docs" / "README.md").read_text()
    for page in (config_root() / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index


def test_results_on_the_first_screen_are_those_of_the_methods_page():
    published = (config_root() / "docs" / "methods.md").read_text()
    rows = re.findall(r"^\| `(vanilla|transformer_xl|unimix)`[^|]*\|(.*)\|$", README, re.MULTILINE)
    shown = [(name, [c.strip() for c in cells.split("|")]) for name, cells in rows if "%" in cells]
    assert len(shown) == 3
    for name, cells in shown:
        (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", published, re.MULTILINE)
        assert [cell.strip() for cell in row.split("|")] == cells


def test_make_reproduces_every_study():
    command = ["make", "-s", "--eval", "studies: ; @echo $(STUDIES)", "studies"]
    done = subprocess.run(command, cwd=config_root(), capture_output=True, text=True, check=True)
    named = done.stdout.split()
    files = {file.stem: file.read_text() for file in (config_root() / "sweeps").glob("*.yaml")}
    assert len(named) == len(set(named)) and set(named) == files.keys() - {"tiny"}
    for i, name in enumerate(named):
        assert {*re.findall(r"sweeps: (\w+)", files[name])} <= set(named[:i]), name


def test_what_is_cited_is_this_version():
    cited = yaml.safe_load((config_root() / "CITATION.cff").read_text())
    project = tomllib.loads((config_root() / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"]) == (unimem.__version__, project["license"])
