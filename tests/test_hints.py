"""A mistake is answered with what was meant, and nothing absurd."""

import pytest

from unimem.config import ConfigError, compose
from unimem.hints import LISTED, close_settings
from unimem.reference import settings


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["memory.window=64"], "belongs to memory.reading=position, and memory.reading=similarity"),
        (["memory.reading=position", "memory.topk=4"], "belongs to memory.reading=similarity"),
        (["memory.management=none", "memory.size=4"], "and memory.management=none is chosen"),
        (["data.alpha=2"], "belongs to data=markov or urn, and data=stdlib is chosen"),
        (["jobs=3"], "jobs is a setting of unimem-sweep"),
        (["topk=3"], "did you mean memory.topk?"),
        (["lora.r=8"], LISTED),
        (["trainer.optimizer=sgd"], LISTED),
        (["method=unimx"], "method=unimx is not an option; did you mean unimix? choose from"),
        (["method=[transformer_xl,rmt]"], "give one method"),
        (["data=[markov]"], "give one data, as in data=markov"),
        (["logger=[0,0]"], "an option is a name"),
        (["memory=3"], "memory=3: write memory.NAME=value"),
        (["=3"], "write name.NAME=value"),
        (["logger=null"], "logger=null: leave it out, or name an option"),
        (["memory.management=[[[[[]]]]]"], "an option is a name"),
        (["injection_layer=2", "memory.injection=all"], "leave one of them out"),
        (["injection_layer=2", "memory.injection.layers=[3]"], "leave one of them out"),
        (["+hydra.callbacks.a._target_=os.getcwd"], "cannot be set here"),
    ],
)
def test_answers(overrides, said):
    with pytest.raises(ConfigError) as error:
        compose(*overrides)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("trainer.lr", "trainer.learning_rate"),
        ("trainer.num_epochs", "trainer.max_steps"),
        ("trainer.batchsize", "trainer.batch_size"),
        ("trainer.bs", "trainer.batch_size"),
        ("trainer.gradient_clip", "trainer.clip"),
        ("trainer.warmup", "trainer.warmup_steps"),
        ("memory.tpok", "memory.topk"),
        ("memory.top_k", "memory.topk"),
        ("memory.layers", "memory.injection.layers"),
        ("memory.soft_tokens", "memory.num_soft_tokens"),
        ("model.layers", "model.num_layers"),
        ("evaluation.docs", "evaluation.documents"),
        ("output_dir", "output"),
        ("injectionlayer", "injection_layer"),
    ],
)
def test_the_setting_meant_comes_first(given, meant):
    assert close_settings(given, [setting.name for setting in settings()])[0] == meant


@pytest.mark.parametrize("given", ["lora.r", "trainer.optimizer", "memory.foo", "x.y"])
def test_nothing_absurd_is_suggested(given):
    found = close_settings(given, [setting.name for setting in settings()])
    assert found == []


def test_injection_layer_goes_with_soft_tokens_and_a_method():
    assert compose("method=unimix", "injection_layer=2").memory.injection.keys() == {
        "layers", "input"
    }  # fmt: skip
    memory = compose("injection_layer=2", "memory.injection=layers").memory
    assert memory.injection == {"layers": [2]}
