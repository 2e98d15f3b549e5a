"""The recorded traces of the UniMem authors' code: logits, losses and gradients must match."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from unimem.memory.bank import MemoryBank
from unimem.memory.settings import MemorySettings
from unimem.model.attach import attach
from unimem.model.segments import run, token_nll

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "index.json").read_text())


def settings(case: dict, bptt_segments: int) -> MemorySettings:
    """The authors' parameters in the four dimensions."""
    given, length = case["params"], case["segment_size"]
    reading, writing, injection = {}, {}, {}
    if given["topk"]:
        reading["similarity"] = {"topk": given["topk"]}
    if given["window_length"] or given["global_token"]:
        reading["position"] = {
            "window": given["window_length"],
            "stride": given["stride"],
            "num_global": given["global_token"],
            "grad_global": False,
        }
    size = given["memory_size"] * length
    if case["rmt_size"]:
        writing["model_forward"] = {
            "num_soft_tokens": case["rmt_size"],
            "soft_segments": case["rmt_memory_size"],
            "seed_read": "seed_read" in case["fixes"],
        }
        injection["input"] = {}
    if size:
        injection["layers"] = case["memory_layers"]
    return MemorySettings.model_construct(
        segment_length=length,
        management={"clear_all" if given["reset"] else "fifo": {"size": size}}
        if size
        else {"none": {}},
        writing=writing | {"direct": {}},
        reading=reading if size else {"none": {}},
        injection=injection or {"none": {}},
        positions="zero",
        fusion="joint",
        bptt_segments=bptt_segments,
    )


def build(case: dict, bptt_segments: int = 0):
    weights = load_file(GOLDEN / case["weights"])
    soft = weights.pop("rmt_tokens")
    model = LlamaForCausalLM(LlamaConfig(**case["model_config"]))
    model.load_state_dict(weights)
    attach(model, settings(case, bptt_segments))
    if case["rmt_size"]:
        model.memory.soft_tokens.data.copy_(soft[0, : case["rmt_size"]])
    return model.eval()


def step(model, bank, ids, *, start=False):
    """Read one segment [B, T]; the loss is the mean over the predictions inside it."""
    rows = len(ids)
    hidden, bank, _ = run(
        model,
        bank,
        ids[:, None],
        starts=torch.full((rows, 1), start),
        lengths=torch.full((rows, 1), ids.shape[1]),
    )
    logits = model.lm_head(hidden[:, 0])
    return logits, token_nll(logits[:, :-1], ids[:, 1:]).mean(), bank


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not c["training"]])
def test_logits_and_losses(name):
    case = CASES[name]
    data = load_file(GOLDEN / case["file"])
    model = build(case)
    bank = MemoryBank.empty(2)
    worst = 0.0
    with torch.no_grad():
        for s in range(len(case["segment_lengths"])):
            whole = "input_ids" in data
            ids = data["input_ids"][s] if whole else data[f"input_ids/{s}"]
            expected = data["logits"][s] if whole else data[f"logits/{s}"]
            bank = MemoryBank.empty(len(ids)) if s == 0 else bank
            start = s in case["reset_before_segments"]
            logits, loss, bank = step(model, bank, ids, start=start)
            worst = max(worst, (logits - expected).abs().max().item())
            assert loss.item() == pytest.approx(data["loss"][s].item(), abs=1e-5)
    assert worst < 1e-4


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c["training"]])
def test_training_losses_and_gradients(name):
    case = CASES[name]
    data = load_file(GOLDEN / case["file"])
    ids = data["input_ids"]

    def check(model, tag):
        got = dict(model.named_parameters())
        checked = 0
        for key, expected in data.items():
            if not key.startswith(f"grad_{tag}/"):
                continue
            target = key.split("/", 1)[1]
            weight = got["memory.soft_tokens" if "rmt_tokens" in target else target]
            found = torch.zeros_like(weight) if weight.grad is None else weight.grad
            assert (found - expected.view_as(found)).abs().max().item() < 1e-5, key
            checked += 1
        assert checked

    # every segment by itself: gradient is cut between segments
    model = build(case, 0)
    bank = MemoryBank.empty(ids.shape[1])
    for s in range(len(data["loss_n1"])):
        model.zero_grad()
        logits, loss, bank = step(model, bank.detach(), ids[s])
        loss.backward()
        assert loss.item() == pytest.approx(data["loss_n1"][s].item(), abs=1e-5)
        if s == 1:
            torch.testing.assert_close(logits, data["logits_n1_seg1"], atol=1e-4, rtol=0)
        if f"grad_n1_seg{s}/" in " ".join(data):
            check(model, f"n1_seg{s}")

    # two segments in one graph: the second's loss reaches what the first wrote
    model = build(case, 1)
    pair = ids[:2].transpose(0, 1)
    hidden, _, _ = run(
        model,
        MemoryBank.empty(len(pair)),
        pair,
        starts=torch.zeros(pair.shape[:2], dtype=torch.bool),
        lengths=torch.full(pair.shape[:2], pair.shape[2]),
    )
    losses = token_nll(model.lm_head(hidden)[:, :, :-1], pair[:, :, 1:]).mean((0, 2))
    torch.testing.assert_close(losses, data["loss_n2_joint01"], atol=1e-5, rtol=0)
    losses.sum().backward()
    check(model, "n2_joint01")


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c["training"]])
def test_training_with_adamw(name):
    """Six steps of AdamW, a segment each, with the gradient cut between them."""
    data = load_file(GOLDEN / CASES[name]["file"])
    model = build(CASES[name])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    bank = MemoryBank.empty(data["input_ids"].shape[1])
    for ids, expected in zip(data["input_ids"], data["adamw_loss_n1"], strict=True):
        _, loss, bank = step(model, bank.detach(), ids)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
