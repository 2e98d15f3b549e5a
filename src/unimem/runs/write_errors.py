"""Errors of a run whose folder cannot be written any more."""

import errno
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

ROOM = 1 << 20
"""With fewer free bytes, a failed write is attributed to a full disk."""

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def write_error_reason(folder: Path, error: Exception) -> str:
    """Return why a write in a folder failed: a full disk, a limit, or the error's own words."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return f"{folder} is gone"
    if free < ROOM:
        return f"the disk is full ({free:,} bytes free)"
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most != resource.RLIM_INFINITY:  # torch's message does not say so
        return f"a file may have {most:,} bytes at most here (ulimit -f)"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Name the file that cannot be written and how to continue, if the system's error does not.

    Args:
        folder: the run's folder, named if the error names no file.

    Raises:
        OSError: a file in `folder` cannot be written; the message is a sentence.
    """
    try:
        yield
    except SafetensorError as error:  # while saving; loading has its own messages
        raise _in_words(folder, folder, error) from error
    except OSError as error:
        gone = error.errno == errno.ENOENT and not folder.exists()
        if error.errno not in _OF_WRITING and not gone:
            raise
        raise _in_words(folder, Path(error.filename or folder), error) from error


def _in_words(folder: Path, path: Path, error: Exception) -> OSError:
    why = write_error_reason(folder, error)
    return OSError(
        f"{path} cannot be written: {why}; once it can, resume=true continues the run from its "
        "newest checkpoint"
    )
