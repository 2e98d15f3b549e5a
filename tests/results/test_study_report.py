import json
import math
import re

import pytest
from small_study import LEFT_OUT, copy_of, small_study

from unimem.results.comparison import panels
from unimem.results.study import read_study
from unimem.results.study_report import write_study_report

FIGURES = {
    "by_injection_layer.png",
    "gain_by_injection_layer.png",
    "position.png",
    "cost_evaluation.png",
    "cost_training.png",
    "learning.png",
}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return small_study(tmp_path_factory)


@pytest.fixture(scope="module")
def page(output):
    return write_study_report(output, "small")


def test_figures_are_in_the_page_and_beside_the_text(page):
    text = page.with_suffix(".md").read_text()
    assert set(re.findall(r"\]\((\S+\.png)\)", text)) == FIGURES
    assert {file.name for file in page.parent.glob("*.png")} == FIGURES
    html = page.read_text()
    assert html.count("data:image/png;base64,") == len(FIGURES)
    assert not re.search(r"(src|href)=\"(?!data:)", html)


def test_tables_hold_the_measured_numbers(page, output):
    (panel,) = panels(read_study(output, "small").groups())
    text = page.with_suffix(".md").read_text()
    for readings, level in zip(panel.readings, panel.levels, strict=True):
        row = f"| {readings.group.label} ≈ | {len(readings.seeds)} of 2 | {level.mean:.4f} |"
        assert row in text
    estimate = panel.against_reference[1].estimate
    assert f"| injection_layer=0 | 2 | {estimate.mean:+.4f} |" in text
    assert f"| {math.exp(estimate.mean):.4f} |" in text and "not claimed" in text


def test_claim_command_and_missing_cells_are_named(page):
    text = page.with_suffix(".md").read_text()
    assert "## The published claim\n\nThe deeper layer is the better one." in text
    assert "injection_layer=1: 5.5" in text
    assert "unimem-sweep sweeps=" in text
    assert "5 of 6 cells are finished." in text and f"{LEFT_OUT}: not begun" in text


def test_what_the_cells_ran_on_is_told_once(page):
    text = page.with_suffix(".md").read_text()
    (versions,) = re.findall(r"\| versions \| (.*) \| (\d) \|", text)
    assert "torch" in versions[0] and versions[1] == "5"


def test_two_numbers_that_vary_give_a_heat_map(output, tmp_path):
    copied = copy_of(output, tmp_path)
    path = copied / "small" / "study.json"
    study = json.loads(path.read_text())
    for i, cell in enumerate(study["cells"]):
        cell["overrides"] = [f"memory.topk={i % 2}", f"memory.size={i // 2}"]
    path.write_text(json.dumps(study))
    write_study_report(copied, "small")
    assert (copied / "small" / "heat_map.png").is_file()


def test_reference_of_the_study_file_is_used(output, tmp_path):
    copied = copy_of(output, tmp_path, report={"reference": "injection_layer=0"})
    page = write_study_report(copied, "small")
    assert "Difference from injection_layer=0" in page.read_text()
