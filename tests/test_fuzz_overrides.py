"""Whatever is given for settings is taken or refused by `ConfigError`: nothing else comes out."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from unimem.config import SETTINGS, ConfigError, compose
from unimem.studies.cells import SweepOptions, parse, read_options
from unimem.studies.grid import combinations
from unimem.studies.search.space import read_space

NAMES = st.sampled_from(
    [*SETTINGS, "memory.topk", "memory.size", "memory.window", "memory.reading", "memory.writing",
     "memory.management", "memory.injection", "memory.injection.layers", "memory.positions",
     "method", "model", "data", "trainer", "evaluation", "logger", "profile", "experiment",
     "dry_run", "slurm", "hydra", "hydra.run.dir", "defaults", "", "a..b", "a@b", "memory/reading"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["0", "-1", "0.5", "1e400", "nan", "-inf", "null", "true", "''", "a b", "all", "similarity",
     "hf", "tiny", "markov", "../x", "${seed}", "${memory}", "${..x}", "${", "\\", "'", "[", "}",
     "???", "é", "\t", "9" * 200, "[]", "{}", "[[]]", "{a:1}", "{1:2}", "1,2", "range(3)",
     "range(0.0,1.0,0.3)", "choice(a,b)", "interval(0,1)", "glob(*)", "tag(log,interval(1,9))",
     "int(1.5)", "str(1)", "subset(0,3)", "upper_half", "[0.5,-1]"]
)  # fmt: skip
NESTED = st.recursive(
    WORDS,
    lambda values: st.one_of(
        st.lists(values, max_size=3).map(lambda v: f"[{','.join(v)}]"),
        st.dictionaries(st.sampled_from(["a", "kind", "topk"]), values, max_size=2).map(
            lambda v: "{" + ",".join(f"{key}:{value}" for key, value in v.items()) + "}"
        ),
        st.lists(values, max_size=3).map("".join),
        st.text(max_size=8),
    ),
    max_leaves=6,
)
LINES = st.builds(
    "{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), NAMES, st.one_of(WORDS, NESTED)
)


def refused_or_read(lines: list[str]) -> None:
    def options() -> None:
        read_options(SweepOptions, "sweep", parse(lines))

    for read in (
        lambda: compose(*lines),
        options,
        lambda: combinations([parse(lines)]),
        lambda: read_space(lines),
    ):
        try:
            read()
        except ConfigError as error:
            assert str(error)


QUICK = settings(
    max_examples=15, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@QUICK
@given(st.lists(LINES, min_size=1, max_size=2))
@example(["logger=[0,0]"])
@example(["memory.management=[[[[[]]]]]"])
@example(["memory.reading.similarity='a b'"])
@example(["seed=" + "9" * 5000])
@example(["~memory"])
@example(["memory.injection=[]"])
@example(["dry_run=???"])
@example(["seed=${oc.select:seed}"])
@example(["seed=1,2", "a=subset(0,99999999999999999999)"])
def test_any_line_is_taken_or_refused(lines):
    refused_or_read(lines)


@pytest.mark.slow
@settings(QUICK, max_examples=250)
@given(st.lists(LINES, min_size=1, max_size=4))
def test_any_lines_are_taken_or_refused(lines):
    refused_or_read(lines)
