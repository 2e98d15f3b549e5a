"""Weights of memory that a run loads from the run or model it starts from."""

import logging
from pathlib import Path

from transformers import PreTrainedModel

from unimem.model.attach import WEIGHTS_NAME, attached, read_memory
from unimem.settings import ModelSettings, PretrainedModel

logger = logging.getLogger(__name__)


def load_start_weights(model: PreTrainedModel, settings: ModelSettings, *, trains: bool) -> None:
    """Load the weights of memory that lie beside a pretrained model, if there are any.

    Soft tokens and gates without saved weights of the same shape are initialised, and logged. A
    warning names them if there are no saved weights of memory at all and the run does not train.

    Raises ValueError if only some have saved weights and the run does not train: it would read with
    untrained weights.
    """
    path = Path(settings.name) / WEIGHTS_NAME if isinstance(settings, PretrainedModel) else None
    if path is None or not path.is_file():
        added = [*attached(model).state_dict()]
        if added and not trains:
            shown = ", ".join(added[:4]) + (f" and {len(added) - 4} more" if added[4:] else "")
            logger.warning(
                "trainer.max_steps=0: memory is read with weights that were never trained (%s); "
                "what it scores says nothing of the method",
                shown,
            )
        return
    given = {key.removeprefix("memory."): value for key, value in read_memory(path.parent).items()}
    memory = attached(model)
    own = memory.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    anew = {k: list(v.shape) for k, v in own.items() if k not in fitting}
    if anew and not trains:
        held = {key: list(value.shape) for key, value in given.items()}
        raise ValueError(
            f"trainer.max_steps=0, but this memory needs {anew} and {path} holds "
            f"{held or 'nothing'}; read with the memory that was trained, or train"
        )
    if anew:
        logger.info("%s start anew: %s has none of that shape", ", ".join(anew), path)
    if unused := [key for key in given if key not in own]:
        logger.info("%s of %s are not used: this memory has no place for them", unused, path)
    memory.load_state_dict(fitting, strict=False)
