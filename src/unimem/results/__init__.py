"""Results of runs: `frame` for a notebook, tables, figures and verdicts for reports."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

logger = logging.getLogger(__name__)


def frame(root: str | Path = "outputs", *, unfinished: bool = False) -> pandas.DataFrame:
    """Return a row for every finished run and evaluation under `root`.

    The columns are those of `unimem-results`: name, method, corpus, seed, nll (nats per token),
    perplexity, own-off (own memory minus memory off, below 0 if memory helps) and so on, then every
    setting by its dotted name. With `unfinished` unfinished runs have a row too. A record that
    cannot be read is left out with a warning.

    Raises:
        ValueError: `root` is not a folder.
    """
    import pandas

    from unimem.results.collect import all_columns, collect

    found = collect(Path(root), unfinished=unfinished)
    for line in found.damaged:
        logger.warning("left out: %s", line)
    return pandas.DataFrame(found.rows, columns=pandas.Index(all_columns(found.rows)))
