"""LongT5's transient global attention (arXiv 2112.07916): old tokens stay as means of groups."""

from reference import compressive_transformer


def logits(model, ids, *, length, layers, size, rate):
    return compressive_transformer.logits(
        model,
        ids,
        length=length,
        layers=layers,
        size=size,
        compressed_size=ids.shape[1],  # never full
        rate=rate,
        pool="mean",
    )
