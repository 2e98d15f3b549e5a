"""A study of seconds: vanilla and memory at two layers, two seeds each; one cell is not run."""

import json
import shutil
import warnings
from pathlib import Path

import pytest

from unimem.config import compose_node, validate
from unimem.integrity import CHECK, FILES
from unimem.studies.run.cell_state import write_study
from unimem.studies.study import expand
from unimem.training.run import train

STUDY = """
study: small
claim: The deeper layer is the better one.
published: {"injection_layer=1": 5.5}
defaults:
  - override /model: tiny
  - override /data: markov
  - override /logger: none
model: {num_layers: 2, hidden_size: 16, intermediate_size: 24, num_heads: 2, num_kv_heads: 2}
data: {length: 40, train_documents: 6, validation_documents: 3}
memory: {segment_length: 8}
trainer: {max_steps: 2, batch_size: 2, threads: 1, accelerator: cpu, log_every: 1}
evaluation: {controls: false}
vary:
  - {method: vanilla, seed: "0,1"}
  - {injection_layer: "0,1", memory.size: 16, seed: "0,1"}
"""
LEFT_OUT = "seed=1 injection_layer=1 memory.size=16"


def small_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of the study and of a plain run `alone`, made once in a process."""
    folder = tmp_path_factory.getbasetemp() / "small_study"
    output = folder / "outputs"
    if folder.exists():
        return output
    folder.mkdir()
    file = folder / "small.yaml"
    file.write_text(STUDY)
    study = expand([f"sweeps={file}", f"output={output}"])
    write_study(study)
    for cell in study.cells:
        if cell.label != LEFT_OUT:
            _train(
                *cell.overrides.lines, f"output={output}", "study=cells", f"name={cell.folder.name}"
            )
    _train(*study.cells[0].overrides.lines, f"output={output}", "name=alone")
    return output


def copy_of(output: Path, to: Path, **fields: object) -> Path:
    """Copy the output folder, with other fields in `study.json`, and return the copy.

    Its records hold no digests, like records of earlier versions, so that tests may change files.
    """
    copied = shutil.copytree(output, to / "outputs")
    for record in copied.glob("*/*/result.json"):
        result = json.loads(record.read_text())
        record.write_text(json.dumps({k: v for k, v in result.items() if k not in (FILES, CHECK)}))
    path = copied / "small" / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return copied


def _train(*overrides: str) -> None:
    node = compose_node("train", overrides)
    with warnings.catch_warnings():
        # Lightning 2.6 uses what torch 2.13 calls deprecated.
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        train(validate(node))
