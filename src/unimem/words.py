"""Numbers in the words of a message."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Count a noun: `1 layer`, `2 layers`, `2 entries`; thousands are parted as in `12,000`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def significant(value: float, digits: int = 4) -> str:
    """Write a number with so many significant digits, without an exponent below a million."""
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if whole == 0:
        return f"{value:.{digits}g}"
    return f"{value:.{max(0, digits - whole)}f}"
