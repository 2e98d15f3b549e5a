"""A memory of another kind than slots is two files of one's own: what is written, what answers."""

import torch
from helpers.models import make_model, tokens
from reference.decoder import decode, local

from unimem.config import compose
from unimem.model.attach import attach
from unimem.model.segments import read

WRITING = """
import torch
from unimem.memory.option import option
from unimem.memory.writing.base import LayerWriting

@option
class GatedDelta(LayerWriting):
    memory_kind = "fast weights"
    merges = True

    def count(self, length):
        return 0

    def weight_shapes(self, kv_heads, head_size):
        return {"keep": (kv_heads, 1, 1), "rate": (kv_heads, 1, 1)}

    def write(self, memory, segment):
        text, (keep, rate) = segment.text, (segment.weights[n].sigmoid() for n in ("keep", "rate"))
        keys, values = text.keys.tanh(), text.values
        state = memory.recurrent.get("fast", keys.new_zeros(*keys.shape[:2], *(keys.shape[3],) * 2))
        for t in range(len(text)):
            key, value = keys[:, :, t, :, None], values[:, :, t, None]
            new = keep * state
            new = new + rate * key @ (value - key.mT @ new)
            state = new.where(text.used[:, :, t, None, None], state)
        return type(memory)(memory.keys, memory.values, memory.positions, recurrent={"fast": state})
"""
READING = """
from unimem.memory.option import option
from unimem.memory.reading.base import StateReading

@option
class GatedDelta(StateReading):
    memory_kind = "fast weights"

    def answer(self, query, memory, weights):
        state = memory.recurrent["fast"].repeat_interleave(query.shape[1] // 2, 1)
        return query.tanh() @ state, (state != 0).any(-1, keepdim=True).any(-2, keepdim=True)
"""


def recurrence(model, ids, length, gates, keep, rate):
    """The gated delta rule, token by token, read at the state before the query's segment."""

    def attention(layer, q, k, v):
        own, B, N, D = local(model, q, k, v, length), *q.shape[::2], q.shape[3]
        out, state = torch.empty_like(own), q.new_zeros(B, q.shape[1], D, D)
        a, b, g = (x[layer].sigmoid() for x in (keep, rate, gates))
        a, b = (x.repeat_interleave(q.shape[1] // 2, 0) for x in (a, b))
        for t in range(N):
            if t % length == 0:
                before = state
            share = g[:, None] * (t >= length)
            answer = torch.einsum("bhd,bhde->bhe", q[:, :, t].tanh(), before)
            out[:, :, t] = share * answer + (1 - share) * own[:, :, t]
            state = a * state
            error = v[:, :, t] - torch.einsum("bhd,bhde->bhe", k[:, :, t].tanh(), state)
            state = state + b * torch.einsum("bhd,bhe->bhde", k[:, :, t].tanh(), error)
        return out

    return model.lm_head(decode(model, model.get_input_embeddings()(ids), attention))


def test_a_gated_delta_rule_from_outside_is_its_recurrence(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIMEM_CONFIG_DIR", str(tmp_path))
    for dimension, code in (("writing", WRITING), ("reading", READING)):
        folder = tmp_path / f"memory.{dimension}"
        folder.mkdir()
        (folder / "delta.py").write_text(code)
        (folder / "delta.yaml").write_text(f"# @package memory\n{dimension}: {{delta: {{}}}}\n")
    memory = compose(
        "memory.writing=delta", "memory.reading=delta", "memory.management=unbounded",
        "memory.injection=all", "memory.fusion=gated", "memory.segment_length=6",
        "memory.bptt_segments=9",
    ).memory  # fmt: skip
    model, ids = make_model(layers=2), tokens(2, 25)
    attached = attach(make_model(layers=2), memory)
    torch.manual_seed(3)
    drawn = {}
    for name, weight in attached.named_parameters():
        if "gates" in name or name.endswith(("keep", "rate")):
            torch.nn.init.normal_(weight)
            drawn[name.split("memory.")[-1].removeprefix("weights.")] = weight
    gates, keep, rate = (
        [next(w for n, w in drawn.items() if part in n and str(i) in n) for i in range(2)]
        for part in ("gates", "keep", "rate")
    )
    found = read(attached, ids, gradient=True).logits
    expected = recurrence(model, ids, 6, gates, keep, rate)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    own = [*gates, *keep, *rate]
    for got, wanted in zip(
        torch.autograd.grad(found.square().sum(), own),
        torch.autograd.grad(expected.square().sum(), own),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
