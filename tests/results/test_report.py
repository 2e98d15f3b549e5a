import base64
import csv
import json
import math
import re
from datetime import UTC, datetime

import pytest
from helpers.made_study import Made, make_study
from helpers.small_study import LEFT_OUT, copy_of, small_study

from unimem.cli.study_report import summary
from unimem.paths import config_root
from unimem.results.claims.statements import read_checks
from unimem.results.comparison import comparisons
from unimem.results.figures import colours_of_report, training_losses
from unimem.results.report import copy_report, left_out, without_paths, write_study_report
from unimem.results.study import read_study
from unimem.studies.study_file import read_study_file

FIGURES = {
    "gain_by_injection_layer.png",
    "position.png",
    "ages.png",
    "cost_evaluation.png",
    "cost_training.png",
}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return small_study(tmp_path_factory)


def write(output, name="small"):
    return write_study_report(read_study(output, name), output / name)


@pytest.fixture(scope="module")
def page(output):
    return write(output).page


def test_figures_are_in_the_page_and_beside_the_text(page):
    text = page.with_suffix(".md").read_text()
    assert set(re.findall(r"\]\((\S+\.png)\)", text)) == FIGURES
    assert {file.name for file in page.parent.glob("*.png")} == FIGURES
    html = page.read_text()
    assert html.count("data:image/svg+xml;base64,") == len(FIGURES)
    assert not re.search(r'(src|href)="(?!data:|#)', html)


def test_two_losses_of_training_are_no_learning_curve(page):
    text = page.with_suffix(".md").read_text()
    assert "No learning curves: training recorded 2 losses of a run at most" in text


@pytest.mark.parametrize(
    ("steps", "kept"),
    [([1, 50, 100], [50, 100]), ([1, 2, 3], [1, 2, 3]), ([50, 100], [50, 100]), ([1], [1])],
)
def test_the_record_of_one_batch_is_no_point_beside_means_of_many(steps, kept):
    metrics = [{"step": step, "loss": 2.0} for step in steps]
    assert training_losses([*metrics, {"step": 900, "loss": None}]) == [(s, 2.0) for s in kept]


def test_figures_name_the_corpus_the_model_and_its_size(tmp_path):
    model = {"name": None, "num_layers": 6, "hidden_size": 128}
    more = {"config": {"seed": 0, "model": model}}
    make_study(tmp_path, *(Made(overrides=f"method={m}", more=more) for m in ("vanilla", "rmt")))
    write(tmp_path, "made")
    for name in ("settings", "position"):
        svg = (tmp_path / "made" / f"{name}.svg").read_text()
        assert "<!-- markov, model 6x128, 100 parameters -->" in svg


def test_tables_hold_the_measured_numbers(page, output):
    (comparison,) = comparisons(read_study(output, "small").groups())
    text = page.with_suffix(".md").read_text()
    for readings, level in zip(comparison.readings, comparison.levels, strict=True):
        assert f"| {readings.group.label} ≈ | {level.mean:.4f} [{level.low:.4f}, " in text
        assert f"| {len(readings.seeds)} of 2 |" in text
    estimate = comparison.against_reference[1].estimate
    assert f"| injection_layer=0 | {estimate.mean:+.4f} [" in text
    assert f"| {math.exp(estimate.mean):.4f} [" in text and "not claimed" in text


def test_the_first_figure_is_below_the_headline(page):
    text = page.with_suffix(".md").read_text()
    headline, figure = re.split(r"\n\n", text)[1:3]
    assert headline.startswith("On markov, ") and "has the lowest loss" in headline
    assert figure.endswith("](gain_by_injection_layer.png)")
    html = page.read_text()
    assert html.index("<figure>") < html.index("<h2")
    assert text.count("](gain_by_injection_layer.png)") == 1


def test_every_table_is_a_csv_file_linked_in_the_page(page, output):
    (comparison,) = comparisons(read_study(output, "small").groups())
    text, html = page.with_suffix(".md").read_text(), page.read_text()
    links = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,(.*?)"', html)
    assert html.count("<table") == len(links)
    for name, data in links:
        assert base64.b64decode(data) == (page.parent / name).read_bytes()
        assert f"[{name}]({name})" in text
    rows = list(csv.DictReader((page.parent / "losses.csv").read_text().splitlines()))
    for row, level in zip(rows, comparison.levels, strict=True):
        assert float(row["nats per token"]) == level.mean
        assert float(row["nats per token, low"]) == level.low


def test_dates_and_run_time_are_told(page, tmp_path):
    today = re.escape(datetime.now(UTC).isoformat()[:8])
    text = page.with_suffix(".md").read_text()
    found = re.search(rf"5 of 6 cells finished, {today}\d\d \(UTC\)\. Run time, summed over", text)
    assert found
    days = ("2026-01-02T10:00:00+00:00", "2026-01-01T10:00:00+00:00", None)
    cells = [
        Made(
            overrides=f"m={i}",
            seeds=(0,),
            seconds=90.0,
            more={"finished_at": day, "seconds": 120.0},
        )
        for i, day in enumerate(days)
    ]
    make_study(tmp_path, *cells)
    text = write(tmp_path, "made").page.with_suffix(".md").read_text()
    assert "3 of 3 cells finished, from 2026-01-01 to 2026-01-02 (UTC), 1 of them without" in text
    assert "summed over cells: 6 min, of which training 4 min;" in text


def test_the_mark_of_ties_is_explained_where_it_is_shown(page, output, tmp_path):
    text, shown = page.with_suffix(".md").read_text(), summary(write(output))
    assert "\n\n≈: not significantly different from the lowest loss." in text
    assert "≈: not significantly different from the lowest loss." in shown
    make_study(tmp_path, Made(overrides="m=0"), Made(overrides="m=1", nll=1.0))
    assert "≈" not in "\n".join(summary(write(tmp_path, "made")))


def test_claim_command_and_missing_cells_are_named(page):
    text = page.with_suffix(".md").read_text()
    head = "## The published claim, and whether it held here"
    assert f"{head}\n\nThe deeper layer is the better one." in text
    assert "| injection_layer=1 | 5.5 |" in text
    assert "unimem-sweep sweeps=" in text
    assert "5 of 6 cells finished" in text and f"{LEFT_OUT}: not begun" in text


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
    write(copied)
    assert (copied / "small" / "heat_map.png").is_file()


def test_reference_of_the_study_file_is_used(output, tmp_path):
    copied = copy_of(output, tmp_path, report={"reference": "injection_layer=0"})
    assert "Difference from injection_layer=0" in write(copied).page.read_text()


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"checkz": []}, "report: 'checkz' is not known; it takes reference, checks"),
        ([], None),
        ("best", "report: 'best' is not known"),
        ({"checks": [{"best": "x"}]}, r"report.checks\[0\].best='x': write the overrides meant"),
    ],
)
def test_what_a_report_cannot_say_is_refused(tmp_path, report, message):
    make_study(tmp_path, Made(overrides="method=vanilla"), report=report)
    if message is None:
        write(tmp_path, "made")
        return
    with pytest.raises(ValueError, match=message):
        write(tmp_path, "made")


def test_verdicts_are_on_the_page_and_in_a_file(tmp_path):
    check = {"lower": {"method": "rmt"}, "than": {"method": "vanilla"}}
    cells = Made(overrides="method=vanilla"), Made(overrides="method=rmt", nll=1.5)
    make_study(tmp_path, *cells, report={"checks": [check]}, profile="cpu")
    report = write(tmp_path, "made")
    found = json.loads((tmp_path / "made" / "verdicts.json").read_text())
    (verdict,) = found.pop("verdicts")
    assert found == {"study": "made", "profile": "cpu"}
    assert verdict["statement"] == check and verdict["verdict"] == "held"
    assert verdict["numbers"] == {
        "mean": -0.5, "low": -0.5, "high": -0.5, "bound": 0.0, "seeds": 3,
        "settings": ["rmt", "vanilla"],
    }  # fmt: skip
    assert '<span class="verdict held">held</span>' in report.page.read_text()
    assert report.headline() == {
        "verdict/markov/rmt has a lower loss than vanilla.": "held",
        "nll/markov/vanilla": pytest.approx(2.35),
        "nll/markov/rmt": pytest.approx(1.85),
    }


def test_every_corpus_has_its_own_tables_and_figures(tmp_path):
    cells = [
        Made(overrides=f"data={corpus} method={method}", corpus=corpus)
        for corpus in ("markov", "urn")
        for method in ("vanilla", "rmt")
    ]
    make_study(tmp_path, *cells)
    report = write(tmp_path, "made")
    text = report.page.with_suffix(".md").read_text()
    assert re.findall("## Results on (.*)", text) == ["markov", "urn"]
    assert {"markov_losses", "urn_losses"} < {table.name for table in report.tables}
    assert {"markov_settings.png", "urn_settings.png"} < {p.path.name for p in report.pictures}
    # What names a corpus is no part of a setting's name, and the settings are listed once.
    assert (
        text.count("| rmt | method=rmt |") == 1 and "data=urn method" not in text.split("Cells")[0]
    )


def test_a_copy_has_everything_but_the_paths_of_this_machine(output, tmp_path):
    copied = copy_of(output, tmp_path)
    log = f'  File "{tmp_path}/src/train.py", line 1\nMemoryError'
    study = read_study(copied, "small")
    (left_out,) = study.unfinished
    left_out.folder.with_name(f"{left_out.folder.name}.log").write_text(log)
    report = write(copied)
    page = copy_report(report, tmp_path / "docs" / "small")
    names = {file.name for file in page.parent.iterdir()}
    tables = {f"{table.name}.csv" for table in report.tables}
    assert {"losses.csv", "differences.csv", "settings.csv"} < tables
    assert names == FIGURES | tables | {"report.md", "report.html", "verdicts.json"}
    assert str(tmp_path) in report.page.read_text()
    for file in (page, page.with_name("report.md")):
        text = file.read_text()
        assert str(tmp_path) not in text and "/tmp" not in text
        assert "small.yaml" in text and "train.py" in text
    assert (
        page.with_name("position.png").read_bytes()
        == (copied / "small" / "position.png").read_bytes()
    )


def test_csv_files_of_a_copy_have_no_paths_either(tmp_path):
    make_study(tmp_path, *(Made(overrides=f"data.path=/home/me/{name}.txt") for name in "ab"))
    report = write(tmp_path, "made")
    page = copy_report(report, tmp_path / "copy")
    texts = [file.read_text() for file in page.parent.glob("*.csv")]
    links = re.findall('csv;charset=utf-8;base64,(.*?)"', page.read_text())
    texts += [base64.b64decode(data).decode() for data in links]
    assert len(texts) == 2 * len(report.tables)
    assert any("data.path=a.txt" in text for text in texts)
    assert not any("/home/me" in text for text in texts)
    assert "/home/me" in (tmp_path / "made" / "settings.csv").read_text()


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("sweeps=/home/me/a.yaml jobs=2", "sweeps=a.yaml jobs=2"),
        ("'/a/b c'", "'b c'"),
        ("(/a/b/c, [/d/e])", "(c, [e])"),
        ("src=&quot;/a/b.py&quot;", "src=&quot;b.py&quot;"),
        ("</p>\n<p>1/2, and/or a/b/c", "</p>\n<p>1/2, and/or a/b/c"),
        ("data:image/png;base64,iVBOR/abc/def==", "data:image/png;base64,iVBOR/abc/def=="),
    ],
)
def test_of_a_path_its_last_part_stays(text, cleaned):
    assert without_paths(text) == cleaned


def test_a_single_document_has_a_report_without_intervals(tmp_path):
    cells = [Made(overrides=f"method={m}", documents=1) for m in ("vanilla", "rmt")]
    make_study(tmp_path, *cells)
    text = write(tmp_path, "made").page.with_suffix(".md").read_text()
    assert "| vanilla ≈ | 2.0000 one document | 7.389 one document |" in text


def test_a_heat_map_names_what_has_no_place_on_it(tmp_path):
    cells = [
        Made(overrides=f"method=unimix memory.topk={k} memory.window={w}", nll=nll)
        for k, w, nll in ((0, 0, 2.0), (0, 8, 1.8), (4, 0, 1.9), (4, 8, 1.7))
    ]
    make_study(tmp_path, Made(overrides="method=vanilla", nll=2.1), *cells)
    captions = [picture.caption for picture in write(tmp_path, "made").pictures]
    assert captions[0] == (
        "Loss over memory.topk and memory.window, in bold the lowest and those not significantly "
        "different from it. Not on the map: vanilla 2.4500."
    )


@pytest.mark.parametrize(
    ("layers", "figure"),
    [(("[5]", "[4,5]", "[3,4,5]"), "gain_by_memory.layers.png"), (("[5]", "[4]"), "settings.png")],
)
def test_lists_of_different_lengths_are_drawn_by_length(tmp_path, layers, figure):
    cells = [Made(overrides=f"memory.layers={value}") for value in layers]
    make_study(tmp_path, Made(overrides="method=vanilla"), *cells)
    names = [picture.path.name for picture in write(tmp_path, "made").pictures]
    assert figure in names


def test_statements_of_the_shipped_studies_can_be_read():
    for file in sorted((config_root() / "sweeps").glob("*.yaml")):
        for profile in [None, *(read_study_file(str(file)).profiles or [])]:
            report = read_study_file(str(file), profile).fields.get("report") or {}
            assert all(check.sentence for check in read_checks(report.get("checks", [])))


def test_controls_and_the_gap_are_shown_where_they_were_read(tmp_path):
    bounds = {"bound_none": 2.0, "bound_unlimited": 1.0}
    controls = {"off": 2.5, "other": 4.0}
    study = make_study(
        tmp_path,
        Made(overrides="method=vanilla", nll=2.15, columns=bounds),
        Made(overrides="method=rmt", nll=1.15, columns=bounds | controls),
    )
    written = write_study_report(study, tmp_path / "made")
    text = written.page.with_suffix(".md").read_text()
    # the mean loss is 0.35 above nll, over documents 0.1 apart
    assert "### The same weights without their memory" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| rmt | +1.0000 ["))
    assert "| -50.0% [" in row and "| +2.5000 [" in row and "| -200.0% [" in row
    assert "| vanilla | +" not in text
    assert (tmp_path / "made" / "gap.png").is_file() and "](gap.png)" in text


def test_without_controls_there_is_no_table_of_them(page):
    assert "without their memory" not in page.with_suffix(".md").read_text()


def test_a_study_with_runs_that_diverged_has_its_report(tmp_path):
    cells = [
        Made(overrides="trainer.learning_rate=1e15", nll=math.nan),
        Made(overrides="trainer.learning_rate=0.1", nll=4e6),
        Made(overrides="trainer.learning_rate=0.001"),
    ]
    make_study(tmp_path, *cells)
    report = write(tmp_path, "made")
    text = report.page.with_suffix(".md").read_text()
    assert "| trainer.learning_rate=1e15 | no number | no number |" in text
    assert "| inf [inf, inf] |" in text and "Difference from trainer.learning_rate=0.1" in text
    assert "**trainer.learning_rate=0.001**" in text
    assert not re.search(r"\d{30}", text)


def test_a_study_of_diverged_runs_alone_has_tables_and_no_figures(tmp_path):
    make_study(tmp_path, *(Made(overrides=f"seed_of={i}", nll=math.nan) for i in range(2)))
    assert not write(tmp_path, "made").pictures


@pytest.mark.parametrize(("unlimited", "shown"), [(2.0, False), (1.5, True)])
def test_a_report_survives_a_gap_of_0(tmp_path, unlimited, shown):
    bounds = {"bound_none": 2.0, "bound_unlimited": unlimited}
    make_study(
        tmp_path,
        *(Made(overrides=f"method={m}", columns=bounds) for m in ("vanilla", "rmt")),
    )
    report = write(tmp_path, "made")
    text = report.page.with_suffix(".md").read_text()
    assert ("share of the gap closed" in text) == shown
    assert ("memory can tell nothing here" in text) != shown
    assert ("none: worse than the bound without memory" in "\n".join(summary(report))) == shown


@pytest.mark.parametrize("file", ["result.json", "documents.npz"])
def test_a_damaged_cell_is_named_and_the_others_are_reported(tmp_path, file):
    study = make_study(tmp_path, Made(overrides="method=vanilla"), Made(overrides="method=rmt"))
    (study.cells[4].folder / file).write_bytes(b"{")
    report = write(tmp_path, "made")
    assert "5 of 6 cells finished" in report.page.read_text()
    (line,) = left_out(report.study)
    assert line.startswith("method=rmt seed=1: left out: ") and file in line
    text = report.page.with_suffix(".md").read_text()
    assert "| 2 of 3 |" in text and f"{file} is damaged" in text


def test_other_numbers_of_training_tokens_are_in_the_first_table(tmp_path):
    cells = Made(overrides="method=vanilla"), Made(overrides="m=1", more={"tokens_seen": 2000})
    make_study(tmp_path, *cells)
    report = write(tmp_path, "made")
    table = report.losses[0]
    column = list(table.head).index("tokens of training")
    assert [row[column] for row in table.rows] == ["1,000", "2,000"]
    text = report.page.with_suffix(".md").read_text()
    assert "different numbers of tokens, 1,000 to 2,000" in text


def test_a_setting_has_one_colour_in_all_corpora_and_figures(tmp_path):
    cells = [
        Made(overrides=f"data={corpus} method=m{i}", corpus=corpus, nll=2.0 + 0.1 * abs(i - best))
        for corpus, best in (("markov", 0), ("urn", 11))
        for i in range(12)
    ]
    found = comparisons(make_study(tmp_path, *cells).groups())
    colours = colours_of_report(found)
    assert len(colours) == 8 == len(set(colours.values()))
    assert [label for label in colours if label == "m0"] == ["m0"]
    report = write(tmp_path, "made")
    text = report.page.with_suffix(".md").read_text()
    assert "On markov, m0 has the lowest loss" in text
    assert "On urn, m11 has the lowest loss, -1.1000 [-1.1000, -1.1000] nats per token" in text


def test_few_documents_and_one_seed_are_told(tmp_path):
    make_study(tmp_path, *(Made(overrides=f"method={m}", seeds=(0,)) for m in ("vanilla", "rmt")))
    text = write(tmp_path, "made").page.with_suffix(".md").read_text()
    assert "With fewer than about 50 documents intervals are too narrow" in text
    assert "of a single seed are over documents alone" in text
