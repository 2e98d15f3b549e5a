"""What `conf/data/*.yaml` may hold: one model per kind of corpus, chosen by `kind`.

The values themselves, and what each means, stand in the yaml files. Nothing heavy is imported
here, so that a wrong value is answered at once.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class _Split(_Settings):
    train_documents: Count | None
    validation_documents: Count | None


class _Tokenized(_Split):
    tokenizer: Annotated[str, Field(min_length=1)]
    # 256 bytes and the begin-of-text token are always in the vocabulary.
    vocab_size: Annotated[int, Field(ge=257)]
    min_tokens: Annotated[int, Field(ge=2)]
    max_tokens: Annotated[int, Field(ge=2)] | None
    document_tokens: Annotated[int, Field(ge=2)] | None = None
    cache: str | None


HeldOut = Annotated[float, Field(gt=0, lt=1)]


class StdlibSettings(_Tokenized):
    """`data=stdlib`: the source code of the standard library of the Python that runs."""

    kind: Literal["stdlib"]
    held_out: HeldOut


def _named(path: Any) -> Any:
    if path is None or path == []:
        raise ValueError("give data.path=: a file, a folder, or a list of them")
    return path


class TextSettings(_Tokenized):
    """`data=text`: the user's own files and folders."""

    kind: Literal["text"]
    path: Annotated[str | list[str], BeforeValidator(_named)]
    validation_path: str | list[str] | None = None
    text_column: str | None
    held_out: HeldOut


class _Hub(_Tokenized):
    path: str | None
    repository: str
    revision: str | None
    text_column: str | None


class PG19Settings(_Hub):
    """`data=pg19`: books, from the hub or from a local copy."""

    kind: Literal["pg19"]
    validation_split: Literal["validation", "test"]


class GitHubSettings(_Hub):
    """`data=github`: source files of public repositories, from the hub or from a local copy."""

    kind: Literal["github"]
    held_out: HeldOut


def _repository(repository: Any) -> Any:
    if repository is None:
        raise ValueError("give data.repository=: a hub id, or a folder that `datasets` can load")
    return repository


class HFSettings(_Tokenized):
    """`data=hf`: any data set of the hub, or a local one of the library `datasets`."""

    kind: Literal["hf"]
    repository: Annotated[str, BeforeValidator(_repository)]
    config: str | None
    revision: str | None
    split: Annotated[str, Field(min_length=1)]
    validation_split: str | None
    held_out: HeldOut
    text_column: str | None
    streaming: bool

    @model_validator(mode="after")
    def _splits_differ(self) -> "HFSettings":
        if self.split == self.validation_split:
            raise ValueError(
                f"validation_split={self.split} is the split to train on; name another, "
                "or null to hold out a share of it"
            )
        return self


class _Generated(_Settings):
    alpha: Annotated[float, Field(gt=0)]
    length: Annotated[int, Field(ge=2)]
    train_documents: Count
    validation_documents: Count
    seed: Annotated[int, Field(ge=0)]


class MarkovSettings(_Generated):
    """`data=markov`: every document is a walk on a Markov chain of its own."""

    kind: Literal["markov"]
    states: Annotated[int, Field(ge=2)]


class UrnSettings(_Generated):
    """`data=urn`: every document draws its tokens from a word law of its own."""

    kind: Literal["urn"]
    vocab_size: Annotated[int, Field(ge=2)]


TokenizedSettings = StdlibSettings | TextSettings | PG19Settings | GitHubSettings | HFSettings
"""The corpora made of text, which needs a tokenizer and a store of tokens."""

DataSettings = Annotated[
    TokenizedSettings | MarkovSettings | UrnSettings, Field(discriminator="kind")
]
"""The `data` node of a configuration: whichever model its `kind` names."""
