"""Numbers in the words of a message."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Count a noun: `1 layer`, `2 layers`, `2 entries`; thousands are parted as in `12,000`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
