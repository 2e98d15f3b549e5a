"""A damaged file of a run is found and named, and passed over or refused; never read as whole."""

import logging
import shutil
from pathlib import Path

import pytest
from faults.harm import SHARES, TextRuns, cut, everything, flips, write_texts, zero_tail
from training.conftest import Runs, metrics, same_weights

from unimem.config import ConfigError
from unimem.data.documents import DataError
from unimem.data.store import TokenStore
from unimem.data.tokenizer import cached_bpe
from unimem.evaluation.tokens import TokenTable
from unimem.model.load import load_pretrained
from unimem.runs.records import read_result
from unimem.training.checkpoint import AtomicCheckpointIO, newest_valid

STOPPED = 6
"""The last of the eight steps that a stopped run has taken."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    return Runs(tmp_path_factory.mktemp("whole")).start("name=a")


@pytest.fixture
def stopped(runs, whole) -> Path:
    """A copy of the whole run, as if it had been killed after the step STOPPED."""
    runs.copy_at(whole, STOPPED)
    return runs.output / "runs" / "a"


def checkpoint(run: Path, step: int = STOPPED) -> Path:
    return run / "checkpoints" / f"step-{step:08d}.ckpt"


def checksum(run: Path, step: int = STOPPED) -> Path:
    path = checkpoint(run, step)
    return path.with_name(f"{path.name}.sha256")


def continues_as(runs: Runs, run: Path, whole: Path) -> bool:
    """Continue, and compare all lines of metrics and all weights with those of the whole run."""
    runs.start("name=a", "resume=true")
    return metrics(run) == metrics(whole) and same_weights(run, whole)


@pytest.mark.fault("C1", "a checkpoint or its checksum is cut", "the one before it is used")
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("file", [checkpoint, checksum])
def test_a_cut_checkpoint_is_named_and_the_one_before_is_used(
    runs, stopped, whole, file, share, caplog, injected
):
    path = file(stopped)
    path.write_bytes(cut(path.read_bytes(), share))
    injected()
    with caplog.at_level(logging.WARNING):
        assert continues_as(runs, stopped, whole)
    is_named = f"{checkpoint(stopped).name} is damaged" in caplog.text
    assert is_named or path.suffix == ".sha256" and share == 0.99  # its newline alone
    injected.held()


@pytest.mark.fault("C1", "config.yaml of a stopped run is cut", "it is named, or what it lacks")
@pytest.mark.parametrize("share", SHARES)
def test_cut_settings_are_refused(runs, stopped, share, injected):
    path = stopped / "config.yaml"
    path.write_bytes(cut(path.read_bytes(), share))
    before = everything(stopped)
    injected()
    with pytest.raises(ConfigError) as told:
        runs.start("name=a", "resume=true")
    assert "config.yaml" in str(told.value) or "settings differ" in str(told.value)
    assert everything(stopped) == before
    injected.held()


@pytest.fixture(scope="module")
def whole_text(tmp_path_factory) -> tuple[Path, TextRuns]:
    folder = tmp_path_factory.mktemp("text")
    runs = TextRuns(folder / "out", write_texts(folder / "texts"), folder / "cache")
    return runs.start("name=a"), runs


CACHED = ("tokens.bin", "offsets.npy", "meta.json", "*.json", "*.json.sha256")


def cached(cache: Path, pattern: str) -> Path:
    kind = "tokens/*" if "*" not in pattern else "tokenizers"
    return sorted(cache.glob(f"{kind}/{pattern}"))[0]


@pytest.mark.fault("C1", "a file of the token cache is cut", "it is named and made again")
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("pattern", CACHED)
def test_a_cut_cache_is_named_and_built_again(
    whole_text, tmp_path, pattern, share, caplog, injected
):
    whole, source = whole_text
    shutil.copytree(source.cache, tmp_path / "cache")
    runs = TextRuns(tmp_path / "out", source.texts, tmp_path / "cache")
    runs.copy_at(whole, STOPPED)
    path = cached(runs.cache, pattern)
    path.write_bytes(cut(path.read_bytes(), share))
    injected()
    with caplog.at_level(logging.WARNING):
        assert continues_as(runs, runs.output / "runs" / "a", whole)
    assert "is damaged" in caplog.text and " again" in caplog.text
    assert everything(runs.cache) == everything(source.cache)
    injected.held()


@pytest.mark.fault("C2", "a bit of a checkpoint is flipped", "it is not loaded")
def test_no_flipped_bit_of_a_checkpoint_is_loaded(stopped, injected):
    path = checkpoint(stopped)
    for bit, data in flips(path.read_bytes(), 300, seed=1):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is damaged: its sha256"):
            AtomicCheckpointIO().load_checkpoint(path)
        assert newest_valid(path.parent) == checkpoint(stopped, STOPPED - 1), bit
        injected()
        injected.held()


@pytest.mark.fault("C2", "a bit of a checksum is flipped", "its checkpoint is not loaded")
def test_no_flipped_bit_of_a_checksum_is_believed(stopped, injected):
    path = checksum(stopped)
    for _, data in flips(path.read_bytes()[:64], 100, seed=2):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is damaged"):
            AtomicCheckpointIO().load_checkpoint(checkpoint(stopped))
        injected()
        injected.held()


@pytest.mark.fault(
    "C2", "a bit of the token store is flipped", "it is not opened, or means nothing"
)
@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "meta.json"])
def test_no_flipped_bit_of_a_token_store_is_read(whole_text, tmp_path, name, injected):
    store = sorted(whole_text[1].cache.glob("tokens/*"))[0]
    good = TokenStore(store)
    known = [good.ids(i).tolist() for i in range(len(good))]
    found = 0
    for i, (bit, data) in enumerate(flips((store / name).read_bytes(), 100, seed=3)):
        copy = tmp_path / f"store-{i}"
        shutil.copytree(store, copy)
        (copy / name).write_bytes(data)
        injected()
        try:
            read = TokenStore(copy)
        except DataError as error:
            found += str(copy) in str(error) and "damaged" in str(error)
        else:  # a bit that says nothing, of NumPy's header
            assert (
                name == "offsets.npy" and [read.ids(i).tolist() for i in range(len(read))] == known
            ), bit
    assert found >= (100 if name != "offsets.npy" else 90)
    injected.held(100)


@pytest.mark.fault("C2", "a bit of a cached tokenizer is flipped", "it is trained again")
def test_no_flipped_bit_of_a_tokenizer_is_read(whole_text, tmp_path, caplog, injected):
    source = cached(whole_text[1].cache, "*.json")
    path = tmp_path / "tokenizer.json"
    shutil.copy(source.with_name(f"{source.name}.sha256"), tmp_path / f"{path.name}.sha256")

    def texts():
        raise LookupError("trained again")
        yield ""

    for _, data in flips(source.read_bytes(), 100, seed=4):
        path.write_bytes(data)
        caplog.clear()
        with pytest.raises(LookupError, match="trained again"):
            cached_bpe(path, texts(), 270)
        assert f"{path} is damaged" in caplog.text
        injected()
        injected.held()


def read_model(run: Path) -> None:
    load_pretrained(run / "model", "the model", local_files_only=True)


READERS = {
    "model/model.safetensors": read_model,
    "model/config.json": read_model,
    "documents.npz": TokenTable.load,
    "result.json": read_result,
}


@pytest.mark.fault("C2", "a bit of a finished run's file is flipped", "it is named and not read")
@pytest.mark.parametrize("name", READERS)
def test_no_flipped_bit_of_a_finished_run_is_read(whole, tmp_path, name, injected):
    run = tmp_path / "a"
    shutil.copytree(whole, run)
    for bit, data in flips((whole / name).read_bytes(), 50, seed=5):
        (run / name).write_bytes(data)
        injected()
        with pytest.raises(ValueError, match=f"{Path(name).name} is") as told:
            READERS[name](run)
        assert str(run) in str(told.value), bit
        injected.held()


@pytest.mark.fault("C3", "the tail of a checkpoint is zeros", "the one before it is used")
def test_a_zero_tail_is_named_and_the_checkpoint_before_is_used(
    runs, stopped, whole, caplog, injected
):
    path = checkpoint(stopped)
    path.write_bytes(zero_tail(path.read_bytes()))
    injected()
    assert continues_as(runs, stopped, whole)
    assert f"{path.name} is damaged" in caplog.text
    injected.held()


@pytest.mark.fault("C3", "a checkpoint or its checksum is missing", "the one before it is used")
@pytest.mark.parametrize("file", [checkpoint, checksum])
def test_without_a_file_the_checkpoint_before_is_used(runs, stopped, whole, file, injected):
    file(stopped).unlink()
    injected()
    assert continues_as(runs, stopped, whole)
    injected.held()


@pytest.mark.fault("C3", "the folder of checkpoints is missing", "said; begun anew, the same run")
def test_without_checkpoints_a_run_begins_anew_and_says_so(runs, stopped, whole, caplog, injected):
    shutil.rmtree(stopped / "checkpoints")
    injected()
    with caplog.at_level(logging.INFO):
        runs.start("name=a", "resume=true")
    assert "from the beginning, because there is no checkpoint" in caplog.text
    assert metrics(stopped) == metrics(whole) and same_weights(stopped, whole)
    injected.held()


@pytest.mark.fault("C4", "all checkpoints are damaged", "refused, nothing is deleted")
def test_all_checkpoints_damaged_is_refused_and_nothing_is_deleted(runs, stopped, injected):
    paths = sorted((stopped / "checkpoints").glob("*.ckpt"))
    for path in paths:
        path.write_bytes(zero_tail(path.read_bytes()))
        injected()
    before = everything(stopped)
    with pytest.raises(ValueError, match="all 6 checkpoints in .* are damaged; start a new run"):
        runs.start("name=a", "resume=true")
    assert everything(stopped) == before
    injected.held(6)


@pytest.mark.fault("C3", "a checkpoint has another step's name", "refused by name")
def test_a_renamed_checkpoint_is_refused(runs, stopped, injected):
    for file in (checkpoint, checksum):
        file(stopped).rename(file(stopped, 7))
    before = everything(stopped)
    injected()
    with pytest.raises(ValueError, match="step-00000007.ckpt .*step 6: the file was renamed"):
        runs.start("name=a", "resume=true")
    assert everything(stopped) == before
    injected.held()


@pytest.mark.fault("C3", "a checkpoint is of another run", "refused, or passed over, by name")
def test_a_checkpoint_of_another_run_is_not_used(runs, stopped, other, injected):
    for file in (checkpoint, checksum):
        shutil.copy(file(other), file(stopped))
    before = everything(stopped)
    injected()
    with pytest.raises(ValueError, match="step-00000006.ckpt"):
        runs.start("name=a", "resume=true")
    assert everything(stopped) == before
    injected.held()


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A run of the same settings but another seed."""
    return Runs(tmp_path_factory.mktemp("other")).start("name=a", "seed=1")
