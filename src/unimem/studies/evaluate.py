"""study.mode=evaluate: cells read held-out documents with the weights of their base run."""

import logging
from collections.abc import Sequence

from unimem.config import Config, ConfigError, compose_node
from unimem.memory.registry import DIMENSIONS
from unimem.overrides import Overrides, is_under, text_of
from unimem.studies.bases import Bases, is_setting
from unimem.studies.cells import Cell, Draft, parse
from unimem.studies.grid import varied

logger = logging.getLogger(__name__)

CHOICES = (*(f"memory.{dimension}" for dimension in DIMENSIONS), "injection_layer")
"""Overrides that choose options; all else under `memory` is a budget."""


def inherit(base: Cell, own: Overrides) -> Overrides:
    """Return the overrides of a cell that reads with a base's weights: the base's, then its own.

    Another method brings its own choices and budgets: of the base's memory only the length of a
    segment stays. Other choices leave the base's budgets as they are, without those that no option
    uses any more.
    """
    given = base.overrides
    new = [key for key in own if key not in given or text_of(own[key]) != text_of(given[key])]
    replaced: tuple[str, ...] = ("model", *new)
    if "method" in new:
        replaced += ("injection_layer", "memory")
    elif any(is_under(key, ("memory.injection",)) for key in new):
        replaced += ("injection_layer",)
    elif "injection_layer" in new:
        replaced += ("memory.injection",)
    kept = Overrides(
        override
        for key, override in given.items()
        if key == "memory.segment_length" or not is_under(key, replaced)
    )
    if {*CHOICES, "method"}.intersection(new):
        kept = _used(kept, own)
    return kept | own | parse(["trainer.max_steps=0"])


def _used(given: Overrides, own: Overrides) -> Overrides:
    """Leave out budgets of options that are not chosen."""
    budgets = given.under(("memory",)).without(CHOICES)
    others = Overrides(o for key, o in given.items() if key not in budgets)
    node = compose_node("train", (others | own).lines)
    unused = Overrides(o for key, o in budgets.items() if not is_setting(node, key))
    for line in unused.lines:
        logger.warning("%s of the base is not used by the options chosen, and is dropped", line)
    return Overrides(o for key, o in given.items() if key not in unused)


def require_followed(found: Sequence[Overrides], bases: Bases) -> None:
    """Refuse to vary how weights are trained if the base does not vary with it.

    The cells would be one reading under several names. Raises `ConfigError`.
    """
    for key in varied(found):
        if is_under(key, ("seed", "trainer")) and not bases.follows(key):
            raise ConfigError(
                f"{key} varies, but study.mode=evaluate trains nothing: add {key} to base:, "
                "so that each value has a base run, or leave it out"
            )


def require_trained(draft: Draft) -> None:
    """Refuse a cell that needs what its base did not train, or would be recorded as another seed.

    Raises `ConfigError`.
    """
    if draft.base is None:
        return
    cell, base = draft.config, draft.base.config
    if cell.seed != base.seed:
        raise ConfigError(
            f"seed={cell.seed}, but the weights are of a base run with seed={base.seed}: "
            "add seed to base:, or leave it out"
        )
    trained = _memory_weights(base)
    if lacking := [weight for weight in _memory_weights(cell) if weight not in trained]:
        raise ConfigError(
            f"study.mode=evaluate trains nothing, and the base has no {', '.join(lacking)}; "
            f"it has {', '.join(trained) or 'no weights of memory'}"
        )


def _memory_weights(config: Config) -> list[str]:
    """Name what memory adds to the weights, as far as it does not depend on the model's shape."""
    plan = config.memory.plan(config.num_layers())
    shapes = plan.weight_shapes(width=1, heads=1, kv_heads=1, head_size=1)
    names: list[str] = []
    for name, shape in shapes.items():
        what, _, of = name.partition(".")
        if not of:
            names.append(f"{shape[0]} {what.replace('_', ' ')}")
        elif what == "gates":
            names.append(f"gates of layer {of}")
        else:
            layer, _, weight = of.partition(".")
            names.append(f"{weight} {list(shape)} of layer {layer}")
    return names
