"""The learning rate as a pure function of the step, so that a continued run has the same one."""

import math

from unimem.settings import TrainerSettings


def learning_rate_factor(step: int, settings: TrainerSettings) -> float:
    """Return the share of `learning_rate` that optimizer step `step` (from 0) uses.

    It rises in a line over `warmup_steps`. Then `cosine` falls along half a wave to
    `final_learning_rate` at the last step; `linear` stays, and falls in a line over the last
    `decay_share` of all steps.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    begin = settings.warmup_steps
    if settings.schedule == "linear":
        begin = max(begin, round((1 - settings.decay_share) * settings.steps))
    done = min(max(step - begin, 0) / max(settings.steps - 1 - begin, 1), 1.0)
    height = (1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done
    return settings.final_learning_rate + (1 - settings.final_learning_rate) * height
