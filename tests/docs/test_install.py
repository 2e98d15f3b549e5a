"""Commands to install: nothing shown to a user installs another project's package."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOWN = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "conf/**/*.yaml", "sweeps/*.yaml", "src/**/*.py")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_command_installs_a_package_of_our_import_name(path):
    text = path.read_text()
    assert not re.search(r"\bunimem\[", text)
    assert not re.search(r"(pip|uv) (install|add)[^\n`]*\bunimem\b(?!-runner)", text)
