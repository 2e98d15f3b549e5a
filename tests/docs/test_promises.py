"""What the pages on reliability and security promise names tests that there are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["docs/reliability.md", "SECURITY.md"])
def test_every_test_that_a_page_names_is_there(page):
    named = NAMED.findall((ROOT / page).read_text())
    assert len(named) > 10
    missing = [f"{file}::{name}" for file, name in named if name not in {"", *functions_of(file)}]
    assert missing == []
