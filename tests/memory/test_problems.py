"""What cannot be combined is refused in a sentence that names it; what can be combined works."""

import itertools

import pytest
import torch
from helpers.models import make_model, tokens

from unimem.config import ConfigError, compose, say_dropped
from unimem.memory.registry import DIMENSIONS, PlanError, option_names
from unimem.memory.settings import MemorySettings
from unimem.model.attach import attach
from unimem.model.segments import read

ALL_ZERO = ["memory.reading=all", "memory.positions=zero"]


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            ["memory.reading=associative", "memory.fusion=gated"],
            ["reading=associative reads the matrix", "memory.writing=direct does not write"],
        ),
        (
            ["memory.writing=associative", "memory.management=unbounded"],
            ["writing=associative writes the matrix", "memory.reading=similarity never reads"],
        ),
        (
            ["method=infini_attention", "memory.fusion=joint"],
            ["memory.fusion=joint has no place", "set memory.fusion=gated"],
        ),
        (
            ["method=infini_attention", "memory.management=fifo"],
            ["memory.management=fifo bounds slots", "choose memory.management=unbounded"],
        ),
        (["method=landmark", "memory.fusion=joint"], ["fusion=joint would read landmarks as"]),
        (["memory.fusion=grouped"], ["fusion=grouped weighs blocks by their landmarks"]),
        (
            ["method=landmark", "memory.writing=[landmark,summary_tokens]", "memory.num_summary=2"],
            ["both insert tokens"],
        ),
        (["method=gist", "memory.bptt_segments=0"], ["bptt_segments=0", "learn nothing"]),
        (["memory.local=reading"], ["local=reading", "similarity does not choose by place"]),
        (
            ["method=unimix", "memory.reading=position", "memory.local=reading"],
            ["soft tokens have none"],
        ),
        (
            ["memory.positions=cache_index"],
            ["cache_index counts places", "needs memory.reading=all"],
        ),
        (
            ["memory.reading=position", "memory.stride=2", "memory.positions=cache_index"],
            ["position with memory.stride=1"],
        ),
        (
            ["memory.crossbatch=1", "memory.positions=true"],
            ["crossbatch=1 reads other documents", "positions=zero or none"],
        ),
        (["memory.threshold=0.5"], ["threshold=0.5 is of cosines", "memory.metric=cosine"]),
        (["method=h2o", "memory.recent=2000"], ["memory.recent=2000 of memory.size=1024"]),
        (
            ["method=infllm", "memory.management=score_evict"],
            ["block_similarity reads blocks that all heads share"],
        ),
        (
            ["method=landmark", "memory.management=score_evict"],
            ["positions=stingy places blocks that all heads share"],
        ),
        (["method=em_llm", "memory.management=fifo"], ["events compares", "management=unbounded"]),
        (
            ["method=compressive_transformer", "memory.writing=pooling"],
            ["recompress pools neighbouring tokens", "memory.writing=pooling does not leave"],
        ),
        (["method=lm_infinite", "memory.limit=100"], ["memory.limit=100 is less than", "raise it"]),
        (
            ["method=longnet", "memory.dilated_rates=[1,2]"],
            ["dilated_spans=[2048, 4096, 8192]", "differ in length"],
        ),
        (["method=longnet", "memory.dilated_rates=[2,2,4]"], ["must begin with 1"]),
        (["method=longnet", "memory.dilated_rates=[]"], ["memory.dilated_rates", "got []"]),
        (["memory.size=[]"], ["memory.size=[]: give one number"]),
        (
            ["memory.writing=pooling", "memory.rate=[2,4]"],
            ["memory.rate=[2, 4]: give one number, for every layer writes alike"],
        ),
        (
            ["method=landmark", "memory.local=reading", "memory.positions=zero"],
            ["could hide its own block from a landmark"],
        ),
        (["method=unimix", "memory.crossbatch=1"], ["memory.reading=position would take for its"]),
        (
            [
                "method=landmark",
                "memory.reading=all",
                "memory.positions=zero",
                "memory.crossbatch=1",
            ],
            ["memory.fusion=grouped would take for its own"],
        ),
        (["method=vanilla", "memory.writing=landmark"], ["landmark writes into layers, but no"]),
        (
            ["method=rmt", "memory.writing=[model_forward,summary_tokens]"],
            ["summary_tokens writes into layers, but no layer has memory"],
        ),
        (
            ["memory.reading=all", "memory.positions=stingy"],
            ["memory.positions=stingy needs memory.topk_blocks", "+memory.topk_blocks=..."],
        ),
        (
            ["method=landmark", "memory.management=pinned_fifo"],
            ["memory.management=pinned_fifo may part a block from its landmark"],
        ),
        (
            [
                "method=landmark",
                "memory.reading=position",
                "memory.num_global=2",
                "memory.positions=zero",
            ],
            ["position may show tokens of a block without its landmark", "block_similarity"],
        ),
        (
            ["method=landmark", "memory.reading=similarity", "memory.positions=zero"],
            ["similarity may show tokens of a block without its landmark"],
        ),
        (["method=landmark", "memory.block_start=5"], ["block_start=5 would begin a block within"]),
        (
            ["method=landmark", "memory.writing=[direct,landmark]"],
            ["leaves the text in memory already"],
        ),
        (
            ["method=landmark", "memory.management=clear_all", "memory.size=512"],
            ["memory.size=512 is less than the 520 slots"],
        ),
        (["method=sparse_transformer_fixed", "memory.columns=200"], ["memory.columns=200"]),
    ],
)
def test_misfits_are_named(overrides, messages):
    with pytest.raises(ConfigError) as error:
        compose(*overrides)
    for message in messages:
        assert message in str(error.value)


def test_a_list_is_a_budget_for_each_layer_unless_the_budget_is_a_list():
    one = compose("method=longnet", "memory.dilated_spans=[512,1024,2048]").memory.plan(22)
    assert one.layers[3].reading.dilated_spans == [512, 1024, 2048]
    each = [[512 + i, 1024] for i in range(22)]
    two = compose("method=longnet", f"memory.dilated_spans={each}", "memory.dilated_rates=[1,2]")
    assert two.memory.plan(22).layers[3].reading.dilated_spans == [515, 1024]


def test_readings_with_lists_unite_and_a_presets_limit_is_dropped_with_a_line(caplog):
    reading = compose("method=longnet", "memory.reading=[dilated,position]").memory.plan(22)
    assert len(reading.layers[0].reading.parts) == 2
    for scheme in ("true", "zero"):
        caplog.clear()
        say_dropped.cache_clear()
        memory = compose("method=lm_infinite", f"memory.positions={scheme}").memory
        assert "limit=4096 is not used by the options chosen, and is dropped" in caplog.text
        assert "memory.limit" not in memory.flat()


def test_what_looks_ahead_says_so(caplog):
    compose("method=infllm")
    assert "memory.retrieval=segment: which blocks a token reads depends on later" in caplog.text
    caplog.clear()
    compose("method=longmem")
    assert not caplog.text


OPTIONS = {
    "all": {},
    "position": {"window": 5, "num_global": 1},
    "similarity": {"topk": 3},
    "strided": {"period": 3},
    "random": {"random_size": 2, "random_blocks": 1},
    "dilated": {"dilated_spans": [4, 12], "dilated_rates": [1, 2]},
    "block_similarity": {"block_size": 3, "topk_blocks": 2, "representatives": 2},
    "associative": {},
    "fifo": {"size": 9},
    "clear_all": {"size": 12},
    "unbounded": {},
    "pinned_fifo": {"size": 7, "num_pinned": 2},
    "score_evict": {"size": 8, "recent": 2},
    "recompress": {"size": 6, "compressed_size": 2, "rate": 2, "pool": "conv"},
    "direct": {},
    "pooling": {"rate": 2, "pool": "max"},
    "landmark": {"block_size": 3},
    "summary_tokens": {"num_summary": 2},
    "events": {"surprise_gamma": 0.5, "surprise_window": 6},
}
NOT_COMBINED = {"none": "what has no memory", "model_forward": "it writes soft tokens, not layers"}
KINDS = [[n for n in option_names(d) if n not in NOT_COMBINED] for d in DIMENSIONS[:3]]


def test_every_option_is_combined_with_the_others():
    missing = {name for names in KINDS for name in names} - OPTIONS.keys()
    assert not missing, f"write small knobs into OPTIONS, so that they are tested: {missing}"


@pytest.mark.slow
def test_whatever_is_not_refused_runs():
    """Every choice of one option each, with every scheme and fusion: refused, or finite."""
    model, ids = make_model(layers=2), tokens(2, 29)
    ran, refused = set(), set()
    schemes = itertools.cycle(
        itertools.product(option_names("positions"), ("joint", "gated", "grouped"))
    )
    for choice in itertools.product(*KINDS):
        options = [{name: dict(OPTIONS[name])} for name in choice]
        for positions, fusion in itertools.islice(schemes, 5):
            fields = {"limit": 8} if positions == "capped" else {}
            if positions == "stingy":
                fields = {"topk_blocks": 2, "block_size": 3}
            try:
                memory = MemorySettings(
                    segment_length=6,
                    **dict(zip(DIMENSIONS, [*options, {"all": {}}], strict=True)),
                    positions=positions,
                    fusion=fusion,
                    bptt_segments=1,
                    **fields,
                )
                memory.plan(2)
            except PlanError as error:
                assert all(len(problem) > 30 for problem in error.problems)
                refused.add((choice, positions, fusion))
                continue
            got = read(attach(model.train(), memory), ids)
            got.nll[:, 1:].mean().backward()
            assert got.logits.isfinite().all(), (choice, positions, fusion)
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
            model.zero_grad()
            ran.add((choice, positions, fusion))
    assert len(ran) > 100 and len(refused) > 100
    seen = {name for choice, *_ in ran for name in choice}
    assert seen >= set(OPTIONS) - {"landmark", "associative"}  # these need two choices to agree


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=landmark", "memory.reading=[position,block_similarity]", "memory.block_size=3"],
        [
            "method=infini_attention",
            "memory.reading=[position,associative]",
            "memory.writing=[direct,associative]",
        ],
    ],
)
def test_what_needs_two_choices_to_agree_joins_others(overrides):
    """A window beside landmarks, and beside an associative memory."""
    memory = compose(*overrides, "memory.window=4", "memory.segment_length=6").memory
    got = read(attach(make_model(layers=2), memory), tokens(2, 29))
    assert torch.isfinite(got.logits).all()
