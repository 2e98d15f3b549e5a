"""Hydra's grammar: what we write is read back, and what a user writes is taken or explained."""

import time

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from unimem.config import ConfigError, compose, compose_node, parse_overrides, resolve, search_path
from unimem.overrides import literal, quoted
from unimem.paths import CONFIG_DIR

FOLDERS = ["lr=0.1", "my options (v2)", "a,b", "set[1]", "größe", "it's", 'say "x"', "a\\b\\",
           "1e3", "${oc.env:HOME}", "a: b", "{c}", "#d", " e "]  # fmt: skip


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_quoted_text_is_read_back(text):
    assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text


@given(st.lists(st.one_of(st.none(), st.booleans(), st.integers(), st.text("a1,='\"\\ é[]"))))
def test_a_literal_is_read_back(values):
    override = OverridesParser.create().parse_override(f"key={literal(values)}")
    assert override.value() == values and not override.is_sweep_override()


@pytest.mark.parametrize(
    "text", ["${oc.env:SECRET}", r"\${oc.env:SECRET}", r"\\${a} ${", "'\"${x\\"]
)
def test_an_interpolation_in_a_literal_is_text(text, monkeypatch):
    monkeypatch.setenv("SECRET", "canary")
    node = compose_node("train", [f"logger.group={literal(text)}"])
    assert resolve(node)["logger"]["group"] == text
    both = ["data=text", f"data.path={literal([text, 'b'])}"]
    assert resolve(compose_node("train", both))["data"]["path"] == [text, "b"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_options_may_have_any_name(folder, tmp_path, monkeypatch):
    own = tmp_path / folder
    (own / "data").mkdir(parents=True)
    (own / "data" / "four.yaml").write_text("defaults: [markov, _self_]\nlength: 44\n")
    monkeypatch.setenv(CONFIG_DIR, str(own))
    assert compose("data=four", "memory.segment_length=11").data.length == 44
    assert len(search_path()) == 1


@pytest.mark.parametrize("text", ["10", "1e3", "nan", "inf", "1_000", "true", "-0", "0x10", "7."])
def test_settings_that_are_text_are_taken_as_they_are_written(text):
    node = compose_node("train", [f"data.cache={text}", "data=text", f"data.path={text}"])
    assert (node.data.cache, node.data.path) == (text, text)
    if text[0] != "-":
        config = compose(f"name={text}", f"study={text}")
        assert (config.name, config.study) == (text, text)


def test_null_is_no_text():
    assert compose("name=null").name is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data.path=/x/lr=0.1", "'data.path=\"/x/lr=0.1\"'"),
        ("data.path=[/x/a=1,/y]", "'data.path=[\"/x/a=1\",/y]'"),
        ("data.path=/a,b", "'data.path=\"/a,b\"'"),
        ("name=mémoire", "'name=\"mémoire\"'"),
        ("memory.topk==3", "write name=value"),
        ("memory.topk", "write name=value"),
        ("memory.topk=4 memory.size=8", "one argument; write name=value for each setting"),
        ("memory.topk=[[[", "write name=value"),
    ],
)
def test_what_cannot_be_parsed_is_answered_with_how_to_write_it(line, message):
    with pytest.raises(ConfigError) as error:
        compose(line)
    said = str(error.value)
    assert message in said and line in said
    for parser_talk in ("Lexer", "mismatched", "viable", "expecting", "hydra.cc"):
        assert parser_talk not in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data.path=" + "a" * 1_000_000, "1,000,010 characters"),
        ("memory.topk=[" + "1," * 3000 + "1]", "values, at most"),
        ("memory.topk=" + "[" * 9000, "brackets 9,000 deep"),
        ("name=" + "${a:" * 300 + "}" * 300, "brackets 300 deep"),
        ("seed=" + "9" * 5000, "a number of 5,000 digits"),
        ("name=a\0b", "a control character"),
        ("data.path=a\udcffb", "bytes that are not UTF-8"),
        ("\udcff=1", "bytes that are not UTF-8"),
    ],
)
@pytest.mark.parametrize("read", [compose, lambda line: parse_overrides([line])])
def test_what_would_take_the_parser_minutes_is_refused_at_once(read, line, message):
    start = time.monotonic()
    with pytest.raises(ConfigError, match=message) as error:
        read(line)
    assert time.monotonic() - start < 5 and len(str(error.value)) < 1000
    str(error.value).encode()


@pytest.mark.parametrize(
    "line",
    ["hydra.run.dir=../x", "hydra.sweep.dir=x", "hydra.searchpath=[file:///x]", "hydra/launcher=x",
     "+hydra.callbacks.a={_target_:os.system}", "+hydra/callbacks=x", "hydra.output_subdir=x",
     "hydra={run:{dir:x}}", "++hydra.job.env_set.A=b"],
)  # fmt: skip
def test_hydra_itself_cannot_be_set(line):
    with pytest.raises(ConfigError, match="cannot be set here; runs lie under output="):
        compose(line)


@pytest.mark.parametrize(
    "line", ["data=../markov", "model=/etc/x", "logger=[a/../csv]", "+data=a/b"]
)
def test_an_option_is_a_file_of_its_group(line):
    with pytest.raises(ConfigError, match="is not the name of an option"):
        compose(line)


@pytest.mark.parametrize("line", ["~memory", "memory.injection=[]", "~memory.injection"])
def test_nodes_that_settings_are_read_from_stay(line):
    with pytest.raises(ConfigError, match="must stay|leave it out"):
        compose(line)


@pytest.mark.parametrize("name", ["../up", "a b", "-a", ".a", "a" * 129, "mémoire"])
def test_the_rule_for_names_is_in_words(name):
    with pytest.raises(ConfigError, match="letters a-z and A-Z, digits and . _"):
        compose(f"name={literal(name)}")
