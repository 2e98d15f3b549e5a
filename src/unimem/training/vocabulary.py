"""The vocabulary or tokenizer of a model's token ids, kept beside the weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from unimem.data.documents import VOCABULARY, Corpus, DataError, trained_vocabulary
from unimem.data.settings import DataSettings, TokenizedSettings
from unimem.data.tokenizer import holds_tokenizer, load_hugging_face

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_vocabulary(model: "PreTrainedModel", corpus: Corpus, folder: Path) -> None:
    """Write the tokenizer beside the weights that `save_pretrained` wrote to `folder`."""
    setattr(model.config, VOCABULARY, corpus.vocabulary)
    model.config.save_pretrained(folder)
    if corpus.tokenizer is not None:
        corpus.tokenizer.save_pretrained(folder)


def with_tokenizer_of(weights: Path, data: DataSettings) -> DataSettings:
    """Return the settings of a corpus with the tokenizer beside the weights, if there is one."""
    if isinstance(data, TokenizedSettings) and holds_tokenizer(weights):
        return data.model_copy(update={"tokenizer": str(weights)})
    return data


def require_vocabulary(weights: str, corpus: Corpus, data: DataSettings) -> None:
    """Refuse documents whose token ids have another meaning than those of the weights.

    Foreign weights do not record a vocabulary: the tokenizer beside them, if there is one, is taken
    to be the one of their training.

    Args:
        weights: the folder or hub id of the weights.
        corpus: the documents to read.
        data: the settings of the corpus.

    Raises:
        ValueError: the vocabularies differ; the message names both.
    """
    trained = trained_vocabulary(Path(weights).expanduser()) or _own_tokenizer(data, weights)
    if trained is not None:
        require_same_vocabulary(trained, corpus, data, weights)


def require_same_vocabulary(trained: str, corpus: Corpus, data: DataSettings, weights: str) -> None:
    """Refuse documents with another vocabulary than the weights were trained with.

    Raises:
        ValueError: they differ.
    """
    if trained == corpus.vocabulary:
        return
    if trained.startswith("tokenizer "):
        text = isinstance(data, TokenizedSettings)
        remedy = f"data.tokenizer={weights}" if text else "documents of text"
    else:
        remedy = f"data={trained.split()[0]}, with the settings of the run that trained it"
    raise ValueError(
        f"{weights} was trained with {_short(trained)}, but data={data.kind} has "
        f"{_short(corpus.vocabulary)}: token ids would mean other things; use {remedy}, "
        "or weights that were trained on such data"
    )


def _own_tokenizer(data: DataSettings, weights: str) -> str | None:
    """Return the vocabulary of the tokenizer beside foreign weights, if there is one."""
    if not isinstance(data, TokenizedSettings) or data.tokenizer == weights:
        return None
    folder = Path(weights).expanduser()
    if folder.is_dir() and not holds_tokenizer(folder):
        return None
    try:
        return f"tokenizer {load_hugging_face(weights).digest}"
    except DataError:
        return None


def _short(vocabulary: str) -> str:
    kind, _, rest = vocabulary.partition(" ")
    return f"{kind} {rest[:12]}" if kind == "tokenizer" else f"the {vocabulary} tokens"
