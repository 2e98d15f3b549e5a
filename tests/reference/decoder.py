"""A LLaMA written out in full: attention over the whole document is what a reference chooses.

Shapes: B rows, H heads, N tokens of the document, D head size, E hidden size.
"""

import torch


def decode(model, embeds, attention):
    """Final hidden states [B, N, E] of embeds [B, N, E].

    `attention(layer, q, k, v)` gets un-rotated q, k, v [B, H, N, D], keys and values repeated to
    the query heads, and gives [B, H, N, D].
    """
    config, x = model.config, embeds
    heads, size = config.num_attention_heads, config.head_dim
    group = heads // config.num_key_value_heads
    for i, layer in enumerate(model.model.layers):
        a, h = layer.self_attn, norm(x, layer.input_layernorm)
        q, k, v = (
            proj(h).unflatten(-1, (-1, size)).transpose(1, 2)
            for proj in (a.q_proj, a.k_proj, a.v_proj)
        )
        k, v = (t.repeat_interleave(group, 1) for t in (k, v))
        x = x + a.o_proj(attention(i, q, k, v).transpose(1, 2).flatten(2))
        m, h = layer.mlp, norm(x, layer.post_attention_layernorm)
        x = x + m.down_proj(torch.nn.functional.silu(m.gate_proj(h)) * m.up_proj(h))
    return norm(x, model.model.norm)


def norm(x, layer):
    return layer.weight * x * (x.square().mean(-1, keepdim=True) + layer.variance_epsilon).rsqrt()


def rope(model, x, positions):
    """Turn x [..., N, D] to positions, any shape that broadcasts with [..., N]."""
    half = x.shape[-1] // 2
    theta = model.config.rope_parameters["rope_theta"]
    angle = positions[..., None] * theta ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def scores(model, q, k, distance):
    """Logits [B, H, N, M] of q [B, H, N, D] on k [B, H, M, D], each pair as far apart as `distance`
    [..., N, M] says, divided by the root of D."""
    rotated = rope(model, q[..., :, None, :], distance)  # [B, H, N, M, D]
    return (rotated * k[..., None, :, :]).sum(-1) / q.shape[-1] ** 0.5


def soft(logits, mask, v):
    """Softmax over the keys that the mask [..., N, M] shows, then the mix of v."""
    return logits.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def places(n):
    """t and j: the place of the query [N, 1] and of the key [1, N]."""
    place = torch.arange(n)
    return place[:, None], place[None]


def local(model, q, k, v, length):
    """Attention of each token on its own segment only."""
    t, j = places(q.shape[2])
    return soft(scores(model, q, k, t - j), (j <= t) & (t // length == j // length), v)
