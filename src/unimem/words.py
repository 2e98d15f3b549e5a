"""Numbers in the words of a message."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Count a noun: `1 layer`, `2 layers`, `2 entries`; thousands are parted as in `12,000`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def duration(seconds: float) -> str:
    """Say a time in its two largest units, rounded."""
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes:.0f} min"
    hours, rest = divmod(round(minutes), 60)
    if hours < 48:
        return f"{hours} h {rest:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"
