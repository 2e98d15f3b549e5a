"""What is measured with: the same for the same seed, and like the keys of a trained model."""

import pytest
import torch

from unimem.attention.search import search
from unimem.bench.inputs import SINKS, Clustered, Gaussian, Recorded, draw_rows

SHAPE = {"heads": 4, "kv_heads": 2, "slots": 2048, "queries": 128, "size": 16}


def sources():
    random = torch.Generator().manual_seed(3)
    keys, queries = (torch.randn(heads, 300, 8, generator=random) for heads in (3, 6))
    return [Clustered(), Gaussian(), Recorded(keys, queries)]


@pytest.mark.parametrize("source", sources(), ids=lambda source: type(source).__name__)
def test_same_seed_same_inputs_of_the_right_shapes(source):
    one, again, other = (source.draw(**SHAPE, seed=seed) for seed in (5, 5, 6))
    assert one.keys.shape == (2, 2048, 16) and one.queries.shape == (4, 128, 16)
    assert torch.equal(one.keys, again.keys) and torch.equal(one.queries, again.queries)
    assert not torch.equal(one.keys, other.keys)
    keys, _ = draw_rows(source, 2, **SHAPE, seed=5, like=torch.empty(0, dtype=torch.bfloat16))
    assert keys.dtype == torch.bfloat16 and not torch.equal(keys[0], keys[1])


def centres_found(source, k=32):
    """How many clusters the best keys of each query are of, the sinks as one of them."""
    drawn = source.draw(**SHAPE | {"size": 64}, seed=0)
    opened = torch.ones(1, 1, SHAPE["slots"], dtype=torch.bool)
    index, _ = search(drawn.queries[None], drawn.keys[None], k, opened, None)
    clusters = Clustered().draw(**SHAPE | {"size": 64}, seed=0).clusters
    assert clusters is not None
    found = clusters.repeat_interleave(2, 0)[:, None].expand(-1, 128, -1).gather(2, index[0])
    return torch.tensor([len(set(row.tolist())) for row in found.flatten(0, 1)]).float()


def test_best_keys_of_a_query_share_few_centres():
    """Of 45 centres there are; keys without structure are of many."""
    assert centres_found(Clustered()).median() <= 4
    assert centres_found(Gaussian()).median() > 8


def test_clusters_are_uneven_and_neighbours_are_alike():
    drawn = Clustered().draw(**SHAPE, seed=0)
    assert drawn.clusters is not None
    sizes = drawn.clusters[0][SINKS:].bincount().sort(descending=True).values
    assert sizes[0] > 4 * sizes.float().mean()
    keys = drawn.keys[0, SINKS:]
    near, far = (torch.cosine_similarity(keys[:-lag], keys[lag:]).mean() for lag in (1, 700))
    assert near > far + 0.4
    variances = keys.var(0)
    assert variances[:4].sum() > variances[4:].sum() / 2
    norms = drawn.keys[0].norm(dim=1)
    assert norms[:SINKS].min() > 2 * norms[SINKS:].median()


def test_recorded_keys_stay_themselves_where_they_fit():
    _, _, source = sources()
    drawn = source.draw(heads=6, kv_heads=3, slots=500, queries=4, size=8, seed=0)
    nearest = torch.cdist(drawn.keys[1], source.keys[1]).amin(1)
    assert nearest.max() < 0.5 < torch.pdist(source.keys[1]).median()
