"""What every option of the four dimensions is: a frozen, keyword-only dataclass that checks itself.

Options hold budgets, never state: memory is a value that goes in and comes out. They import no
torch, so that a configuration is checked before anything heavy is loaded.
"""

from functools import partial

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

option = partial(
    dataclass, frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid")
)
