"""The names of what a run's folder holds, and of what a study's folder holds."""

from unimem.integrity import FILES, RESULT

__all__ = ["CHECKPOINTS", "CONFIG", "FILES", "METRICS", "RESULT", "STUDY"]

CONFIG = "config.yaml"
"""The settings of a run, written before it starts."""
METRICS = "metrics.jsonl"
"""The metrics of training, a line for each step that was logged."""
CHECKPOINTS = "checkpoints"
STUDY = "study.json"
"""The cells of a study, in the study's folder."""
