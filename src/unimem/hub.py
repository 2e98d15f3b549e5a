"""Whether the Hugging Face hub answers, asked once before its clients ask it again and again."""

import logging
from functools import cache

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""The longest that the hub is waited for; its clients would try five times, for a minute."""


@cache
def ask_hub() -> None:
    """Ask the hub for a sign of life; where none comes, use only what is cached, and log a line.

    Offline mode (`HF_HUB_OFFLINE=1`) is then set for this process, so that nothing asks again.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # the client's own kinds, and those of the system
        logger.warning(
            "the hub at %s does not answer (%s): only what is cached here is used",
            constants.ENDPOINT,
            type(error).__name__,
        )
        constants.HF_HUB_OFFLINE = True
        from datasets import config

        config.HF_HUB_OFFLINE = True
