"""What a mistyped or misplaced setting was meant to be."""

import difflib
from collections.abc import Mapping, Sequence

from unimem.reference import settings

LISTED = "unimem-train --explain lists all settings, --explain NAME explains one"

ALIASES = {
    "lr": "trainer.learning_rate",
    "bs": "trainer.batch_size",
    "wd": "trainer.weight_decay",
    "steps": "trainer.max_steps",
    "epochs": "trainer.max_steps",
    "warmup": "trainer.warmup_steps",
    "grad_accum": "trainer.accumulate",
    "grad_clip": "trainer.clip",
    "max_grad_norm": "trainer.clip",
    "amp": "trainer.precision",
    "bf16": "trainer.precision",
    "fp16": "trainer.precision",
    "gpus": "trainer.devices",
    "device": "trainer.accelerator",
    "seq_len": "memory.segment_length",
    "context_length": "memory.segment_length",
    "chunk_size": "memory.segment_length",
    "k": "memory.topk",
    "layers": "memory.injection.layers",
    "layer": "injection_layer",
    "theta": "model.rope_theta",
    "depth": "model.num_layers",
    "vocab": "data.vocab_size",
    "out": "output",
    "out_dir": "output",
    "output_dir": "output",
    "resume_from": "resume",
    "run_name": "name",
    "wandb": "logger",
}
"""Names that the field uses for settings of ours."""


def unknown_setting(key: str, known: Sequence[str], chosen: Mapping[str, Sequence[str]]) -> str:
    """Return where a setting belongs that is not there, or which one was meant.

    Args:
        key: as it was given.
        known: settings that are there with the options chosen.
        chosen: group -> its options that are chosen.
    """
    declared = [setting for setting in settings() if setting.name == key]
    options = [option for setting in declared for option in setting.options]
    if options:
        groups = dict.fromkeys(option.partition("=")[0] for option in options)
        now = " and ".join(f"{g}={', '.join(chosen[g])}" for g in groups if chosen.get(g))
        return (
            f"{key} is not a setting of the options chosen: it belongs to "
            f"{' and '.join(in_groups(options))}{f', and {now} is chosen' if now else ''}"
        )
    if "." not in key and (same := [n for n in known if n.rpartition(".")[2] == key]):
        return f"{key} is not a setting; did you mean {' or '.join(same[:3])}?"
    commands = [setting.command for setting in declared if setting.command]
    if commands:
        return f"{key} is a setting of {' and '.join(commands)}"
    # settings of options that are not chosen: not every command has them
    others = [s.name for s in settings() if not s.command] if "method.name" in known else []
    if close := close_settings(key, [*known, *others]):
        return f"{key} is not a setting of the options chosen; did you mean {' or '.join(close)}?"
    return f"{key} is not a setting of the options chosen; {LISTED}"


def in_groups(options: Sequence[str]) -> list[str]:
    """Write options group by group: `memory.reading=all, position or similarity`."""
    groups: dict[str, list[str]] = {}
    for option in options:
        group, _, name = option.partition("=")
        groups.setdefault(group, []).append(name)
    return [
        f"{group}={', '.join(names[:-1])} or {names[-1]}" if names[1:] else f"{group}={names[0]}"
        for group, names in groups.items()
    ]


def unknown_option(group: str, name: str, options: Sequence[str]) -> str:
    """Return which option of a group was meant, and which there are."""
    close = difflib.get_close_matches(name.lower(), options, 2, 0.6)
    close += [x for x in options if x not in close and len(name) > 2 and x.startswith(name.lower())]
    meant = f"did you mean {' or '.join(close[:2])}? " if close else ""
    more = ""
    if group == "data":
        more = "; your own documents are data=text data.path=FILE_OR_FOLDER"
    if group == "model":
        more = "; any LLaMA, Mistral, Qwen2 or Qwen3 is model=hf model.name=ID_OR_FOLDER"
    listed = f"choose from {', '.join(options)}"
    return f"{group}={name} is not an option; {meant}{listed}{more}"


def close_settings(key: str, known: Sequence[str], most: int = 2) -> list[str]:
    """Return the settings that a name may mean, the best first; none if none is near."""
    names = dict.fromkeys(known)
    last = key.rpartition(".")[2].lower()
    group = key.rpartition(".")[0]
    alias = ALIASES.get(last) or next((ALIASES[w] for w in last.split("_") if w in ALIASES), None)
    if alias in names and group in ("", alias.partition(".")[0]):
        return [alias]
    scored = sorted(((_likeness(key.lower(), name), name) for name in names), reverse=True)
    best = scored[0][0] if scored else 0.0
    return [name for score, name in scored[:most] if score >= 0.7 and score > best - 0.15]


def _likeness(key: str, name: str) -> float:
    """Return how much a name is like a setting's, from 0 to 1; where it stands counts little."""
    group, _, last = key.rpartition(".")
    own_group, _, own = name.rpartition(".")
    near = 0.05 if group == own_group else 0.0
    whole = difflib.SequenceMatcher(None, last, own).ratio()
    if len(last) > 2 and own.startswith(last[:3]) and _abbreviates(last, own):
        whole = max(whole, 0.9)
    words = own.split("_")
    if "".join(word[0] for word in words if word) == last and len(words) > 1:
        whole = 0.9
    elif len(last) > 2 and (last in words or own.startswith(last) or own in last.split("_")):
        whole = max(whole, 0.85)
    elif len(own) > 3 and own in last or len(last) > 3 and last in own:
        whole = max(whole, 0.8)
    # A setting of another group is meant only if the name itself is nearly right.
    return whole - (0.0 if near or not group else 0.15) + near


def _abbreviates(short: str, long: str) -> bool:
    """Whether all letters of `short` stand in `long`, in their order."""
    letters = iter(long)
    return all(letter in letters for letter in short)
