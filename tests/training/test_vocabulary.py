"""Weights are read with the vocabulary that they were trained with, or refused by name."""

import json
import random
import shutil

import pytest
from training.conftest import TINY, XL
from transformers import AutoModelForCausalLM, AutoTokenizer

from unimem.cli.evaluate import evaluate, recompose
from unimem.config import compose_node, validate
from unimem.data.tokenizer import load_hugging_face
from unimem.runs.records import read_result
from unimem.studies.recorded_run import recorded_run
from unimem.studies.study import expand
from unimem.training.run import train

COMMON = (*XL, *(a for a in TINY if not a.startswith(("model", "data"))))
SCRATCH = tuple(a for a in TINY if a.startswith("model"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two folders of texts in different letters, a run trained on the first, one on markov."""
    root = tmp_path_factory.mktemp("vocabulary")
    for name, letters in [("texts", "abcd"), ("others", "wxyz")]:
        (root / name).mkdir()
        draw = random.Random(0)
        for i in range(12):
            words = ("".join(draw.choices(letters, k=4)) for _ in range(40))
            (root / name / f"{i}.txt").write_text(" ".join(words))
    start(root, "name=text", *SCRATCH, *text(root))
    start(root, "name=markov", *SCRATCH, *(a for a in TINY if a.startswith("data")))
    return root


def text(root, name="texts"):
    return (
        "data=text", f"data.path={root / name}", "data.held_out=0.3", "data.vocab_size=280",
        f"data.cache={root / 'cache'}",
    )  # fmt: skip


def start(root, *overrides):
    node = compose_node("train", [*COMMON, f"output={root / 'out'}", *overrides])
    return train(validate(node))


def weights_of(root, run):
    return ("model=hf", f"model.name={root / 'out' / 'runs' / run / 'model'}")


def test_the_tokenizer_lies_beside_the_weights(made):
    run = made / "out" / "runs" / "text"
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    sentence = "abcd dcba, größer 🙂\n"
    ids = tokenizer(sentence)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and sentence not in tokenizer.decode(ids[:-1])
    assert tokenizer.decode(ids, skip_special_tokens=True) == sentence
    vocabulary = read_result(run)["corpus"]["vocabulary"]
    assert vocabulary == f"tokenizer {load_hugging_face(str(run / 'model')).digest}"
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.config.unimem_vocabulary == vocabulary
    assert model.config.vocab_size == len(tokenizer)


def test_a_run_goes_on_from_weights_without_naming_their_tokenizer(made):
    run = start(made, "name=on", *weights_of(made, "text"), *text(made, "others"))
    before, after = read_result(made / "out" / "runs" / "text"), read_result(run)
    assert after["corpus"]["vocabulary"] == before["corpus"]["vocabulary"]
    assert after["corpus"]["digest"] != before["corpus"]["digest"]
    assert (run / "model" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("run", "data", "message"),
    [
        ("text", "others bpe", r"model was trained with tokenizer \w{12}, but data=text has "
         r"tokenizer \w{12}: .*use data.tokenizer=.*text/model"),
        ("text", "markov", "has the markov of 8 tokens: .* use documents of text"),
        ("markov", "urn", "was trained with the markov of 8 tokens, but data=urn has the urn of 8"),
        ("markov", "texts bpe", "was trained with the markov of 8 tokens.* use data=markov"),
        ("markov", "texts", "markov/model was trained with the markov of 8 tokens.*no tokenizer"),
    ],
)  # fmt: skip
def test_another_vocabulary_is_refused_by_name(made, run, data, message):
    name, _, tokenizer = data.partition(" ")
    chosen = {"markov": ("data=markov",), "urn": ("data=urn", "data.vocab_size=8")}.get(name)
    chosen = chosen or (*text(made, name), *([f"data.tokenizer={tokenizer}"] if tokenizer else []))
    with pytest.raises(ValueError, match=message):
        start(made, "name=refused", *weights_of(made, run), *chosen)
    assert not (made / "out" / "runs" / "refused").exists()


def test_other_chains_of_as_many_states_are_the_same_vocabulary(made):
    data = ("data=markov", "data.alpha=0.5", "data.length=40", "data.train_documents=6")
    start(made, "name=chains", *weights_of(made, "markov"), *data, "data.validation_documents=3")


def test_weights_from_elsewhere_keep_their_own_tokenizer(made, tmp_path):
    """Without a record the tokenizer in the folder counts."""
    folder = tmp_path / "foreign"
    shutil.copytree(made / "out" / "runs" / "text" / "model", folder)
    config = (folder / "config.json").read_text()
    assert "unimem_vocabulary" in config
    (folder / "config.json").write_text(config.replace("unimem_vocabulary", "something"))
    with pytest.raises(ValueError, match="foreign was trained with tokenizer"):
        start(made, "name=refused", "model=hf", f"model.name={folder}", "data.tokenizer=bpe",
              *text(made, "others"))  # fmt: skip


def test_a_tokenizer_that_was_changed_in_its_folder_is_refused(made, tmp_path):
    copied = tmp_path / "run" / "model"
    shutil.copytree(made / "out" / "runs" / "text" / "model", copied)
    file = copied / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="model was trained with tokenizer"):
        start(made, "name=refused", "model=hf", f"model.name={copied}", *text(made))


def test_unimem_eval_reads_with_the_tokenizer_of_the_weights(made, tmp_path):
    """The cache of tokenizers may be gone, and what was recorded is read again."""
    run = made / "out" / "runs" / "text"
    recorded = read_result(run)
    recorded["config"]["data"]["cache"] = str(tmp_path / "cache")
    config = recompose(recorded["config"], [], str(run))
    _, again = evaluate(run, recorded, config, [], str(tmp_path / "eval"))
    assert not (tmp_path / "cache" / "tokenizers").exists()
    assert (
        again["evaluation"]["scores"]["own"]["nll"]
        == recorded["evaluation"]["scores"]["own"]["nll"]
    )


def sweep(made, *more):
    data = text(made, "others")
    return expand([*COMMON, *data, f"output={made / 'out'}", "trainer.max_steps=1", *more])


def test_cells_read_other_documents_with_the_tokenizer_of_a_recorded_base(made):
    base = recorded_run(made / "out" / "runs" / "text")
    found = sweep(made, f"base={base.folder}", "memory.segment_length=8,16")
    for cell in found.cells:
        assert cell.config.data.kind == "text"
        assert cell.config.data.tokenizer == str(base.folder / "model")


def test_cells_of_other_tokenizers_than_their_base_are_refused(made, tmp_path):
    file = tmp_path / "a.yaml"
    base = [*SCRATCH, *XL, *text(made), "trainer.max_steps=1", "memory.segment_length=8"]
    file.write_text(f"base: {base}\nvary: {{memory.segment_length: '8,16'}}")
    with pytest.raises(ValueError, match="model was trained with tokenizer .* but data=text has"):
        sweep(made, f"sweeps={file}")


def test_documents_that_changed_are_named_before_sizes_clash(made, tmp_path):
    """The larger vocabulary of the grown folder no longer fits the checkpoint's weights."""
    folder = tmp_path / "grown"
    shutil.copytree(made / "texts", folder)
    options = ["name=grown", *SCRATCH, *text(made, folder), "data.vocab_size=400"]
    options.remove("data.vocab_size=280")
    run = start(made, *options)
    (run / "result.json").unlink()
    shutil.rmtree(run / "model")
    for i in range(12):
        (folder / f"more-{i}.txt").write_text(" ".join(f"longer{j}words" for j in range(60)))
    with pytest.raises(ValueError, match="the corpus has changed since the run began"):
        start(made, *options, "resume=true")
