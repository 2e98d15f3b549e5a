"""Model folders of others, damaged or made to harm: loaded as they are, or refused by name."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import make_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unimem.config import ConfigError, compose
from unimem.model.load import load_model

CANARY = "canary.txt"
CODE = f"open({CANARY!r}, 'w').write('x')\nclass Config: pass\nclass Model: pass\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    make_model().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path, monkeypatch) -> Path:
    """A copy of a whole model, to be damaged; the canary would lie in the working folder."""
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "model"
    copy.mkdir()
    for file in good.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def load(folder: Path):
    """Load as `unimem-train` does; what is wrong is a ValueError or OSError in a line."""
    config = compose("model=hf", f"model.name={folder}", "method=vanilla", "data=markov")
    return load_model(config.model, 8, 0, "float32")


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder: Path) -> None:
    with pytest.raises((ValueError, OSError), match="model") as error:
        load(folder)
    text = str(error.value)
    assert len(text.splitlines()) == 1 or isinstance(error.value, ConfigError)
    assert not Path(CANARY).exists()


def test_the_whole_model_loads(folder):
    assert load(folder).config.num_hidden_layers == 3


@pytest.mark.parametrize("text", ["", "[]", "1", "null", "[" * 100_000, "{" * 5000, '{"a": '])
def test_a_config_that_is_no_object(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder)


SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "intermediate_size",
)  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "value", [0, -1, "x", 1.5, [1], pytest.param(10**6, marks=pytest.mark.slow), 10**12]
)
def test_a_size_that_the_weights_do_not_have(folder, size, value):
    configure(folder, **{size: value})
    refused(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "nope"},
        {"model_type": 3},
        {"model_type": "bert", "architectures": ["BertModel"]},
        {"rope_parameters": {"rope_type": "nope"}},
        {"rope_parameters": "x"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": "a"}},
        {"hidden_act": "nope"},
        {"quantization_config": "x"},
        {"head_dim": 3},
        {"attn_implementation": "nope", "hidden_act": None},
    ],
)
def test_settings_that_mean_nothing(folder, values):
    configure(folder, **values)
    refused(folder)


def test_code_beside_the_weights_is_not_run(folder):
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    configure(folder, model_type="evil", auto_map=names)
    (folder / "evil.py").write_text(CODE)
    refused(folder)


def edited(weights: bytes, **entry: Any) -> bytes:
    """Change the header of a safetensors file, of its first tensor."""
    (length,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + length])
    first = next(key for key in header if key != "__metadata__")
    header[first] |= entry
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + weights[8 + length :]


DAMAGE = {
    "empty": lambda w: b"",
    "cut in the header": lambda w: w[:100],
    "cut in the tensors": lambda w: w[: len(w) // 2],
    "zeros": lambda w: bytes(len(w)),
    "a header of exabytes": lambda w: struct.pack("<Q", 2**60) + b"{}",
    "offsets that overlap": lambda w: edited(w, data_offsets=[0, 10]),
    "another type": lambda w: edited(w, dtype="I8"),
    "another shape": lambda w: edited(w, shape=[1]),
    "a negative shape": lambda w: edited(w, shape=[-1, -1]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights(folder, damage):
    file = folder / "model.safetensors"
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    refused(folder)


def index(folder: Path, value: Any) -> None:
    (folder / "model.safetensors").unlink()
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    "value",
    ["[]", "{", {"metadata": {}, "weight_map": [1]}, {"metadata": {}, "weight_map": {"a": "none"}}],
)
def test_an_index_of_nothing(folder, value):
    index(folder, value)
    refused(folder)


@pytest.mark.parametrize("kind", ["nothing", "link", "folder", "pickle"])
def test_weights_that_are_no_file_of_tensors(folder, kind):
    file = folder / "model.safetensors"
    file.unlink()
    if kind == "link":
        file.symlink_to("/nowhere")
    elif kind == "folder":
        file.mkdir()
    elif kind == "pickle":
        torch.save({"x": Payload()}, folder / "pytorch_model.bin")
    refused(folder)


class Payload:
    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_flipped_bits_of_a_config_load_or_are_refused(folder, data):
    path = folder / "config.json"
    content = path.read_bytes()
    found = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        found[data.draw(st.integers(0, len(found) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(found)
    try:
        load(folder)
    except (ValueError, OSError):
        pass
    finally:
        path.write_bytes(content)
