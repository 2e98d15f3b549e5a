"""Documents so short that memory is never read: the second segment is the first that reads it."""

from collections.abc import Sequence

from unimem.words import counted


def unread(lengths: Sequence[int], segment_length: int, what: str) -> str | None:
    """Return in a sentence that most documents end within their first segment; None if they do not.

    Args:
        lengths: tokens of each document that is read, at least one document.
        segment_length: tokens.
        what: the documents, as in `held-out document of data=text`, singular.
    """
    short = sum(length <= segment_length for length in lengths)
    if 2 * short <= len(lengths):
        return None
    typical = sorted(lengths)[len(lengths) // 2]
    fitting = 1 << max(0, (typical // 8).bit_length() - 1)
    remedy = f"set memory.segment_length={fitting}, or give longer documents"
    segment = f"a segment (memory.segment_length={segment_length})"
    if short == len(lengths):
        return (
            f"memory is never read: no {what} is longer than {segment}, the longest has "
            f"{counted(max(lengths), 'token')}; {remedy}"
        )
    return (
        f"memory is never read in {short / len(lengths):.0%} of the documents ({short} of "
        f"{len(lengths)}): each is a {what} no longer than {segment}; {remedy}"
    )
