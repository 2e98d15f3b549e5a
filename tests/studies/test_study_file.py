import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from unimem.config import ConfigError, compose
from unimem.overrides import literal
from unimem.paths import CONFIG_DIR, config_root
from unimem.studies.study_file import BaseStudy, read_study_file


@pytest.mark.parametrize(
    "value",
    [1, 0.002, 1e-5, True, None, "a", "a b", "true", "null", "1e3", "", "a,b", "range(1,3)",
     'say "x"', "/tmp/else where=3", "it's", [1, "b", None], "ä{b}"],
)  # fmt: skip
def test_literal_is_what_hydra_reads_back(value):
    override = OverridesParser.create().parse_override(f"key={literal(value)}")
    assert not override.is_sweep_override()
    assert override.value() == value


@pytest.mark.parametrize("name", ["quickstart_markov", "quickstart_code"])
def test_overrides_mean_what_the_file_means_to_hydra(name):
    file = config_root() / "conf" / "experiment" / f"{name}.yaml"
    assert compose(*read_study_file(str(file)).fixed.lines) == compose(f"experiment={name}")


def test_fields_and_grids(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "study: a\nclaim: it helps\nbase: [method=vanilla]\n"
        "vary:\n- {seed: '0,1'}\n- {injection_layer: 3, seed: null}\n"
    )
    found = read_study_file(str(file))
    assert found.fixed.lines == ("study=a",)
    assert [grid.lines for grid in found.grids] == [
        ("seed=0,1",), ("injection_layer=3", "seed=null")
    ]  # fmt: skip
    assert found.base == ("method=vanilla",)
    assert found.fields["claim"] == "it helps"


@pytest.mark.parametrize(
    "text",
    [
        "data: {tokenizer: 'evil/${oc.env:SECRET}'}",
        "vary: {data.path: '${oc.env:SECRET},b'}",
        "base: ['data.path=${oc.env:SECRET}']",
        "profiles: {cpu: {data: {path: [a, '${oc.env:SECRET}']}}}",
        "'data.${oc.env:SECRET}': 1",
    ],
)
def test_interpolations_in_a_study_file_are_refused(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(f"study: a\n{text}\n")
    with pytest.raises(ConfigError, match="write the value itself, without"):
        read_study_file(str(file))


def test_a_profile_is_merged_over_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "memory: {size: 1, segment_length: 2}\ndata: {path: [a, b]}\n"
        "vary: {seed: 1, memory.topk: 2}\nreport: {reference: {seed: 1}, checks: []}\n"
        "base: {sweeps: other}\nprofiles:\n"
        "  one:\n"
        "  two: {memory: {size: 3}, data: {path: [c]}, vary: {seed: 4}, base: [method=vanilla],"
        " report: {checks: [{best: {seed: 4}}]}}\n"
    )
    one, two = read_study_file(str(file)), read_study_file(str(file), "two")
    assert one.profiles == two.profiles == ("one", "two")
    assert (one.profile, two.profile) == ("one", "two")
    assert one.fixed.lines == ("memory.size=1", "memory.segment_length=2", 'data.path=["a", "b"]')
    assert two.fixed.lines == ("memory.size=3", "memory.segment_length=2", 'data.path=["c"]')
    assert [grid.lines for grid in one.grids] == [("seed=1", "memory.topk=2")]
    assert [grid.lines for grid in two.grids] == [("seed=4",)]
    assert one.base == BaseStudy(sweeps="other") and two.base == ("method=vanilla",)
    assert two.fields["report"] == {"reference": {"seed": 1}, "checks": [{"best": {"seed": 4}}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vary: {seed: [0, 1]}", "vary.*seed"),
        ("vary: 3", "vary"),
        ("base: []", "base: List should have at least 1 item"),
        ("base: method=vanilla", "base: Input should be a valid list"),
        ("base: {where: {seed: 1}}", "base.sweeps: Field required"),
        ("report: {checks: [{lower: {seed: 1}}]}", r"report.checks\[0\]: .*than"),
        ("base: {sweeps: FILE}", "a study cannot start from its own cells"),
        ("profiles: [cpu]", "profiles: must hold a section for each profile"),
        ("profiles: {cpu: 3}", "profiles.cpu: must hold name: value pairs"),
        ("profiles: {cpu: {profiles: {}}}", "profiles.cpu: a profile has no profiles"),
        ("profiles: {cpu: {profile: tinyllama}}", "profile: is chosen by profile=NAME"),
        ("profile: cpu\nprofiles: {cpu: {}}", "profile: is chosen by profile=NAME"),
        ("defaults: [method]", "is not `override /group: option`"),
        ("a: [", "is not YAML"),
        ("- a", "must hold name: value pairs"),
    ],
)
def test_mistakes(tmp_path, text, message):
    file = tmp_path / "a.yaml"
    file.write_text(text.replace("FILE", str(file)))
    with pytest.raises(ConfigError, match=message):
        read_study_file(str(file))


@pytest.mark.parametrize("place", ["here", "own"])
def test_a_study_of_ones_own_has_a_name_too(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CONFIG_DIR, str(tmp_path / "own"))
    folder = tmp_path / ("sweeps" if place == "here" else "own/sweeps")
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("study: mine")
    assert read_study_file("mine").fixed.lines == ("study=mine",)
    with pytest.raises(ConfigError, match="did you mean mine[?] choose from .*mine"):
        read_study_file("mien")


def test_a_study_that_is_not_found_is_answered_with_how_to_name_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("study: mine")
    with pytest.raises(ConfigError, match=r"sweeps=mine is not an option.*sweeps=\./mine\.yaml"):
        read_study_file("mine")
    assert read_study_file("./mine.yaml").fixed.lines == ("study=mine",)
    with pytest.raises(ConfigError, match=r"sweeps=\./other\.yaml: there is no such file"):
        read_study_file("./other.yaml")
