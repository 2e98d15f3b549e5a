"""Search is compared with what finds the same."""

import torch

from unimem.attention.search import search
from unimem.bench.inputs import Clustered, draw_rows
from unimem.bench.retrieval import measure_search, product_and_topk
from unimem.bench.timer import Clock


def test_product_and_topk_finds_what_search_finds():
    like = torch.empty(0)
    keys, query = draw_rows(
        Clustered(), 2, heads=4, kv_heads=2, slots=700, queries=300, size=16, seed=0, like=like
    )
    opened = torch.ones(2, 1, 700, dtype=torch.bool)
    _, best = search(query, keys, 8, opened, None)
    index, logits = product_and_topk(query, keys, 8)
    assert torch.allclose(logits.sort(-1).values, best.sort(-1).values, atol=1e-4)
    own = keys.repeat_interleave(2, 1)[:, :, None].expand(-1, -1, 300, -1, -1)
    picked = own.gather(3, index[..., None].expand(*index.shape, 16))
    assert torch.allclose((picked * query[:, :, :, None]).sum(-1), logits, atol=1e-4)
    found = measure_search(query, keys, 8, 2, Clock(device=torch.device("cpu"), threads=1))
    assert found["queries"] == 2 * 4 * 300 and found["k"] == 8
    assert {len(seconds) for seconds in found["seconds"].values()} == {2}
