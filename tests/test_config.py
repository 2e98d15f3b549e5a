"""Overrides as a user gives them: what they mean, and what is answered when they are wrong."""

import logging
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
import yaml
from omegaconf import OmegaConf

from unimem.config import ConfigError, compose, compose_node, resolve, say_dropped
from unimem.memory.registry import DIMENSIONS, option_class, option_names
from unimem.memory.settings import MemorySettings
from unimem.paths import config_root

CONF = config_root() / "conf"
METHODS = sorted(f.stem for f in (CONF / "method").glob("*.yaml"))


def test_choice_and_budget():
    memory = compose("memory.reading=similarity", "memory.topk=32").memory
    assert memory.label("reading") == "similarity"
    assert memory.plan(22).layers[11].reading.topk == 32


def test_choice_by_list():
    config = compose("memory.reading=[similarity,position]", "memory.topk=4", "memory.window=512")
    assert config.memory.label("reading") == "position+similarity"
    position, similarity = config.memory.plan(22).layers[11].reading.parts
    assert (position.window, similarity.topk) == (512, 4)


def test_command_line_comes_before_the_preset():
    memory = compose("method=unimix", "memory.management=clear_all", "memory.topk=9").memory
    assert memory.label("management") == "clear_all"
    assert memory.choice("management")["clear_all"] == {"size": 10240}
    assert memory.choice("reading")["similarity"]["topk"] == 9


def test_knob_of_an_option_not_chosen_is_dropped_with_a_line_unless_it_was_asked_for(caplog):
    say_dropped.cache_clear()
    with caplog.at_level(logging.WARNING):
        memory = compose("method=unimix", "memory.reading=position").memory
    assert memory.label("reading") == "position"
    assert "memory.topk=4 is not used by the options chosen, and is dropped" in caplog.text
    with pytest.raises(ConfigError, match=r"memory\.topk=9 is not used by memory\.management=fifo"):
        compose("method=unimix", "memory.reading=position", "memory.topk=9")


SHARED = {"fusion": "gated", "positions": "true", "local": "reading", "bptt_segments": 2}


@pytest.mark.parametrize(("knob", "value"), SHARED.items())
def test_a_shared_knob_is_refused_where_nothing_reads(knob, value):
    with pytest.raises(ConfigError, match=rf"memory\.{knob}={value} is not used by"):
        compose("method=vanilla", f"memory.{knob}={value}")
    assert f"memory.{knob}" not in compose("method=vanilla").memory.flat()


def test_knobs_follow_others_only_while_the_method_is_chosen():
    """Gist keeps as many slots as it writes; InfLLM cuts blocks behind the initial tokens."""
    memory = compose("method=gist", "memory.num_summary=7").memory
    assert memory.choice("management") == {"fifo": {"size": 7}}
    memory = compose("method=infllm", "memory.num_global=9").memory
    assert memory.choice("reading")["block_similarity"]["block_start"] == 9
    memory = compose("method=infllm", "memory.reading=all").memory
    assert memory.choice("reading") == {"all": {"crossbatch": 0}}


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_knob_with_a_default_in_python_has_the_same_in_its_yaml(dimension):
    for name in option_names(dimension):
        found = yaml.safe_load((CONF / f"memory.{dimension}" / f"{name}.yaml").read_text())
        for field in fields(option_class(dimension, name)):
            if dimension != "injection" and field.default is not MISSING:
                assert found[field.name] == field.default, f"{name}.{field.name}"
    shared = yaml.safe_load((CONF / "train.yaml").read_text())["memory"]
    for name, field in MemorySettings.model_fields.items():
        if name in shared and not field.is_required():
            assert shared[name] == field.default, name


@pytest.mark.parametrize("layer", [0, 1, 21])
def test_injection_layer_alone_selects_one_layer(layer):
    config = compose(f"injection_layer={layer}")
    assert config.memory.label("injection") == "layers"
    assert list(config.memory.plan(22).layers) == [layer]


def test_injection_layer_keeps_soft_tokens():
    memory = compose("method=unimix", "injection_layer=4").memory
    assert memory.label("injection") == "input+layers"
    assert list(memory.plan(22).layers) == [4]


def test_budget_by_layer():
    overrides = ("memory.injection.layers=[3,5]", "memory.topk=[7,9]", "memory.size=[10,20]")
    plan = compose(*overrides).memory.plan(22)
    assert [plan.layers[i].reading.topk for i in (3, 5)] == [7, 9]
    assert [plan.layers[i].management.size for i in (3, 5)] == [10, 20]


@pytest.mark.parametrize("word", option_names("positions"))
def test_position_schemes_are_words(word):
    reading = "block_similarity" if word == "stingy" else "all"
    memory = compose(f"memory.reading={reading}", f"memory.positions={word}").memory
    assert memory.plan(22).layers[11].positions.label == f"memory.positions={word}"
    assert memory.flat()["memory.positions"] == word


def test_a_position_scheme_takes_its_knobs():
    memory = compose("memory.positions=capped", "memory.limit=700").memory
    assert memory.plan(22).layers[11].positions.limit == 700
    assert memory.flat()["memory.limit"] == 700
    with pytest.raises(ConfigError, match=r"memory\.limit=7 is not used.*positions=zero"):
        compose("memory.limit=7")


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["memory.tpok=32"], ["memory.tpok"]),
        (["memory.reading=nope"], ["memory.reading=nope", *option_names("reading")]),
        (["injection_layer=99"], ["injection_layer=99", "22 layers (0..21)", "injection_layer=21"]),
        (["injection_layer=-23"], ["injection_layer=-23", "22 layers (0..21)"]),
        (["injection_layer=1.5"], ["injection_layer: a layer is an index", "got 1.5"]),
        (["injection_layer=true"], ["injection_layer: a layer is an index", "got True"]),
        (["memory.injection.layers=[]"], ["at least one layer"]),
        (["memory.injection.layers=[[1]]"], ["memory.injection.layers: a layer is an index"]),
        (["memory.injection.layers=top"], ["upper_half or lower_half", "top"]),
        (
            ["model.num_layers=4", "memory.injection.layers=[2,11]"],
            ["4 layers (0..3)", "injection_layer=3", "memory.injection.layers=upper_half"],
        ),
        (["memory.reading.similarity='a b'"], ["memory.reading.similarity='a b'", "memory.topk="]),
        (["trainer.learning_rate=1e300"], ["trainer.learning_rate", "less than or equal to 1000"]),
        (["trainer.learning_rate=inf"], ["trainer.learning_rate"]),
        (["trainer.max_steps=1.5"], ["trainer.max_steps", "1.5"]),
        (["memory.injection.layers=[3,22]"], ["memory.injection.layers=[3, 22]", "(0..21)"]),
        (["memory.reading=position", "memory.topk=3"], ["memory.topk"]),
        (
            ["memory.topk=-1", "memory.size=abc", "trainer.batch_size=-1", "seed=x"],
            ["memory.topk", "got -1", "memory.size", "'abc'", "trainer.batch_size", "seed"],
        ),
        (["memory.management=none"], ["memory.management=none keeps nothing", "similarity"]),
        (["memory.reading=none"], ["memory.management=fifo stores", "memory.reading=none"]),
        (["memory.injection=input"], ["memory.injection=input", "memory.writing=model_forward"]),
        (["memory.writing=model_forward"], ["memory.injection=input"]),
        (["memory.writing=[direct,model_forward]"], ["memory.injection=input; add it"]),
        (["method=rmt", "memory.bptt_segments=0"], ["memory.bptt_segments=0", "learn nothing"]),
        (["method=longformer", "memory.size=100"], ["memory.size=100", "segment_length=512"]),
        (["memory.injection=single"], ["memory.injection=single is not an option", "layers"]),
        (["memory.topk=[1,2]"], ["memory.topk=[1, 2] has 2 entries for 1 layer with"]),
        (["memory.management=[fifo,unbounded]"], ["one management"]),
        (["memory.reading=[none,all]"], ["mixes none"]),
        (["+memory.foo=3"], ["memory.foo=3 is not used"]),
        (
            ["memory.positions=far"],
            ["memory.positions=far", "cache_index, capped, none, stingy, true, zero"],
        ),
        (["model=hf"], ["model.name"]),
        (["model.num_heads=7"], ["num_heads=7"]),
        (["name=../escape"], ["name"]),
        (["data.alpha=2"], ["data.alpha"]),
    ],
)
def test_wrong_settings_are_named_all_at_once(overrides, messages):
    with pytest.raises(ConfigError) as error:
        compose(*overrides)
    for message in messages:
        assert message in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_composes_and_says_what_it_is(method):
    config = compose(f"method={method}")
    assert config.method.name == method
    assert config.memory.plan(22).segment_length == 512
    assert method == "custom" or config.method.title and config.method.note


def test_authors_presets():
    """The budgets of the authors' presets, with their defects left out."""
    layers = compose("method=memorizing_transformer").memory.plan(22).layers
    assert sorted(layers) == [11, 21] and layers[11].reading.topk == 32
    longformer = compose("method=longformer").memory.plan(22).layers
    window = longformer[0].reading
    assert (window.window, window.stride, window.num_global) == (512, 2, 4)
    assert longformer[21].management.size == 1024
    unimix = compose("method=unimix").memory.plan(22)
    assert sorted(unimix.layers) == list(range(11, 22))
    assert unimix.layers[11].management.size == 10240
    assert (unimix.soft.num_soft_tokens, unimix.soft.soft_segments) == (40, 1)
    assert compose("method=vanilla").memory.plan(22).layers == {}


PAPER = {  # the layers of 22 that the presets name
    "custom": [11],
    "unimix": [*range(11, 22)],
    "unlimiformer": [*range(11, 22)],
    "memorizing_transformer": [11, 21],
    "focused_transformer": [6, 12, 18],
    "longmem": [14],
    "block_recurrent": [16],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_a_model_of_any_depth(method):
    memory = compose(f"method={method}", "model.num_layers=2").memory
    for depth in (1, 2, 4, 6, 22, 32, 33):
        layers = memory.layers(depth)
        assert list(layers) == sorted({*layers}) and {*layers} <= {*range(depth)}
        assert tuple(memory.plan(depth).layers) == layers
        assert memory.flat(depth).get("memory.layers", []) == list(layers)
        if method in ("unimix", "unlimiformer"):
            assert list(layers) == [*range(depth // 2, depth)]
    if method in PAPER:
        assert list(memory.layers(22)) == PAPER[method]


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        ("[0]", [0]),
        ("[-1]", [31]),
        ("-32", [0]),
        ("[1.0]", [31]),
        ("[1]", [1]),
        ("[0.0,0.5,0.25]", [0, 8, 16]),
        ("[16,0.5,-16]", [16]),
        ("lower_half", [*range(16)]),
        ("[upper_half,0]", [0, *range(16, 32)]),
    ],
)
def test_layers_are_named_from_either_end_or_by_depth(given, layers):
    config = compose(f"memory.injection.layers={given}", "model.num_layers=32")
    assert list(config.memory.plan(32).layers) == layers


@pytest.mark.parametrize(("given", "layer"), [("-1", 21), ("0.5", 11), ("1.0", 21), ("0.0", 0)])
def test_one_layer_by_its_depth(given, layer):
    memory = compose(f"injection_layer={given}").memory
    assert list(memory.plan(22).layers) == [layer]


def test_a_model_of_unknown_depth_is_planned_all_the_same():
    config = compose("model=hf", "model.name=some/where", "method=unimix")
    assert config.num_layers() is None
    assert config.memory.plan(None).soft and config.memory.plan(None).layers
    assert list(config.memory.plan(40).layers) == [*range(20, 40)]


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        ([], 512),
        (["data=markov"], 64),
        (["data=urn"], 64),
        (["data=urn", "profile=tinyllama"], 512),
        (["experiment=quickstart_code"], 128),
        (["data=urn", "profile=tinyllama", "memory.segment_length=32"], 32),
        (["data=urn", "data.segment_length=16"], 16),
    ],
)
def test_segments_fit_the_corpus_unless_profile_method_or_user_say(overrides, length):
    assert compose(*overrides).memory.segment_length == length
    assert "segment_length" not in resolve(compose_node("train", overrides))["data"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["memory.segment_length=512"], "no document of data=markov is longer"),
        (["data.length=64", "method=rmt"], "memory.segment_length=8"),
        (["evaluation.max_tokens=64"], "evaluation.max_tokens=64"),
        (["memory.segment_length=511"], ""),
        (["memory.segment_length=512", "method=vanilla"], ""),
    ],
)
def test_memory_that_is_never_read_is_told_before_the_run(overrides, said, caplog):
    compose("data=markov", *overrides)
    assert said in caplog.text and ("memory is never read" in caplog.text) == bool(said)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["memory.topk=1000000", "memory.size=128"], "more than memory ever holds (128 slots)"),
        (["memory.topk=128", "memory.size=128"], ""),
        (["memory.topk=1000000", "memory.management=unbounded"], ""),
        (["method=longmem", "memory.size=32"], "64 slots, more than memory ever holds (32 slots)"),
    ],
)
def test_a_choice_of_more_slots_than_there_are_is_told(overrides, said, caplog):
    compose(*overrides)
    assert said in caplog.text and ("ever holds" in caplog.text) == bool(said)


SAME = [
    (["memory.positions=true"], ["memory.positions='true'"]),
    (["memory.positions=True"], ["memory.positions='true'"]),
    (["memory.grad_topk=True"], ["memory.grad_topk=true"]),
    (["trainer.learning_rate=1e-3"], ["trainer.learning_rate=0.001"]),
    (["trainer.max_steps=1e3"], ["trainer.max_steps=1000"]),
    (["trainer.weight_decay=0"], ["trainer.weight_decay=0.0"]),
    (["memory.topk=4.0"], ["memory.topk=4"]),
    (["memory.threshold=0", "memory.metric=cosine"],
     ["memory.threshold=0.0", "memory.metric=cosine"]),
    (["memory.injection.layers=[3]"], ["memory.injection.layers=[3 ]"]),
    (["memory.injection.layers=[3]"], ["memory.injection.layers=3"]),
    (["memory.injection.layers=[3]"], ["injection_layer=3"]),
    (["memory.injection.layers=[5,3]"], ["memory.injection.layers=[3, 5, 5]"]),
    (["memory.reading=[position,similarity]"], ["memory.reading=[similarity,position]"]),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_settings_are_recorded_alike(one, other):
    assert compose(*one).record() == compose(*other).record()
    assert compose(*one) == compose(*other)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_every_option_has_a_file_of_its_name(dimension):
    folder = CONF / f"memory.{dimension}"
    assert sorted(f.stem for f in folder.glob("*.yaml")) == option_names(dimension)


def test_options_agree_on_shared_knobs():
    """A knob that several files declare has one default, but for the soft tokens' gradient."""
    seen: dict[str, object] = {}
    for dimension in DIMENSIONS:
        for file in (CONF / f"memory.{dimension}").glob("*.yaml"):
            for key, value in yaml.safe_load(file.read_text()).items():
                if key not in DIMENSIONS and file.stem != "model_forward":
                    assert seen.setdefault(key, value) == value, (file, key)


def test_composed_configuration_costs_no_torch():
    code = (
        "import sys; from unimem.config import compose; compose('method=unimix'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_recorded_configuration_is_plain():
    config = compose("method=unimix")
    assert OmegaConf.create(config.memory.flat())["memory.reading"] == "position+similarity"


def test_a_pretrained_model_brings_its_tokenizer():
    assert compose("model=tinyllama").data.tokenizer.startswith("TinyLlama/")
    assert compose("model=tinyllama", "model.tokenizer=bpe").data.tokenizer == "bpe"
    assert compose().data.tokenizer == "bpe"


PROFILES = sorted(file.stem for file in (config_root() / "conf" / "profile").glob("*.yaml"))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_trains_float32_weights(profile):
    config = compose(f"profile={profile}", "injection_layer=0")
    assert config.weights_dtype() == "float32"
    assert config.trainer.precision != "bf16-true"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_precision_are_trained_only_on_demand(dtype):
    hf = ["model=hf", "model.name=x", "data=markov", "injection_layer=0", f"model.dtype={dtype}"]
    with pytest.raises(ConfigError, match=f"model.dtype={dtype} would train.*precision=bf16-true"):
        compose(*hf)
    assert compose(*hf, "trainer.precision=bf16-true").weights_dtype() == "bfloat16"
    assert compose(*hf, "trainer.max_steps=0").weights_dtype() == dtype


MODELS = sorted(file.stem for file in (config_root() / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("model", MODELS)
def test_the_learning_rate_is_the_models_own_unless_it_is_set(model):
    given = [f"model={model}", "data=markov", "injection_layer=0"]
    given += ["model.name=x"] if model == "hf" else []
    config = compose(*given)
    expected = 2e-3 if config.model.kind == "scratch" else 5e-5
    assert config.trainer.learning_rate == expected
    assert compose(*given, "trainer.learning_rate=1e-4").trainer.learning_rate == 1e-4


def test_gradient_that_cannot_reach_as_far_as_declared_is_told(caplog):
    compose("memory.bptt_segments=3", "trainer.segments_per_step=2")
    assert (
        "trainer.segments_per_step=2: a step reads 2 segments, so gradient reaches 1 back at most, "
        "not memory.bptt_segments=3; leave it out, or set it to 4"
    ) in caplog.text
    caplog.clear()
    compose("memory.bptt_segments=3", "trainer.segments_per_step=4")
    compose("memory.bptt_segments=3")
    assert "segments_per_step" not in caplog.text
