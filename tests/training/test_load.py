"""Models from scratch and from a folder."""

import json

import pytest
import torch
from helpers.models import make_model
from safetensors.torch import load_file, save_file

from unimem.config import ConfigError, compose
from unimem.model.load import load_model

NANO = compose("model=nano").model


@pytest.fixture
def folder(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def hf(name, *more):
    return compose("model=hf", f"model.name={name}", "memory.injection.layers=[0]", *more).model


def test_scratch_model_is_a_function_of_its_seed_and_draws_nothing_else():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (load_model(NANO, 50, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_scratch_model_has_the_shape_of_its_settings():
    model = load_model(NANO, 50, 0)
    assert model.training and model.dtype == torch.float32 and not model.config.use_cache
    assert model.get_input_embeddings().weight.shape == (50, 128)
    assert len(model.model.layers) == 22
    assert model.config.rope_parameters["rope_theta"] == 10000.0
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (2 * 16, 128)
    assert model.generation_config.eos_token_id is None


def test_input_embeddings_of_their_own_start_at_unit_scale():
    embeddings = load_model(NANO, 500, 0).get_input_embeddings().weight
    assert embeddings.std().item() == pytest.approx(1, rel=0.02)
    tied = load_model(NANO.model_copy(update={"tie_embeddings": True}), 500, 0)
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight
    assert tied.get_input_embeddings().weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_default_model_has_about_five_million_weights():
    assert sum(p.numel() for p in load_model(NANO, 4096, 0).parameters()) == pytest.approx(
        5e6, rel=0.15
    )


def test_model_of_a_folder_is_the_saved_one(folder):
    path, saved = folder
    model = load_model(hf(path), 61, 0)
    assert model.training
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, saved(ids).logits)


def test_dtype_is_followed(folder):
    assert load_model(hf(folder[0]), 61, 0, "bfloat16").dtype == torch.bfloat16
    model, settings = load_model(hf(folder[0]), 61, 0, "bfloat16"), hf(folder[0])
    model.save_pretrained(folder[0])
    assert load_model(settings, 61, 0).dtype == torch.bfloat16
    assert load_model(settings, 61, 0, "float32").dtype == torch.float32


def damaged(path, change):
    """Change the tensors of a saved model."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.norm.weight"), r"its weights lack model\.norm\.weight;"),
        (
            lambda t: [t.pop(k) for k in [*t] if "layers.2" in k],
            r"lack model\.layers\.2\.input_layernorm\.weight, .* and \d more; use a checkpoint",
        ),
        (lambda t: t.update(score=torch.ones(3)), "its weights hold also score;"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(3)}),
            r"hold in another shape model\.norm\.weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, change, said):
    damaged(folder[0], change)
    with pytest.raises(ValueError, match=said) as error:
        load_model(hf(folder[0]), 61, 0)
    assert str(error.value).startswith(f"model.name={folder[0]} ") and "\n" not in str(error.value)


def test_a_layer_more_in_the_configuration_is_refused(folder):
    config = json.loads((folder[0] / "config.json").read_text())
    (folder[0] / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ValueError, match=r"its weights lack model\.layers\.3"):
        load_model(hf(folder[0]), 61, 0)


def test_pickled_weights_are_not_read(folder, tmp_path):
    path, saved = folder
    (path / "model.safetensors").unlink()
    torch.save(saved.state_dict(), path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="weights are pickled, which can run code.*safetensors"):
        load_model(hf(path), 61, 0)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"model_type": 3}', bytes(range(256)), None]
)
def test_damaged_files_are_told_in_a_sentence(folder, file, content):
    path = folder[0] / file
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises((ValueError, ConfigError), match="model.name=") as error:
        load_model(hf(folder[0]), 61, 0)
    assert "\n" not in str(error.value)


def test_vocabulary_that_does_not_fit_names_both_sizes(folder):
    with pytest.raises(ValueError, match="has 61 token embeddings but the corpus has 62 tokens"):
        load_model(hf(folder[0]), 62, 0)


def test_missing_model_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="model.name=.*nowhere cannot be loaded") as error:
        load_model(hf(tmp_path / "nowhere"), 61, 0)
    assert "\n" not in str(error.value) and "local folder" in str(error.value)


def test_hub_model_offline_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="model.name=nobody/none cannot be loaded") as error:
        load_model(hf("nobody/none", "model.tokenizer=bpe"), 61, 0)
    assert "\n" not in str(error.value)


def test_code_beside_a_model_is_not_run(folder, tmp_path):
    path, _ = folder
    text = (path / "config.json").read_text()
    remote = '"auto_map": {"AutoModelForCausalLM": "evil.Evil"}, "model_type": "evil",'
    (path / "config.json").write_text(text.replace('"model_type": "llama",', remote))
    (path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(hf(path), 61, 0)
    assert not (tmp_path / "canary").exists()
