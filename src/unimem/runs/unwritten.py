"""What is said of a run whose folder cannot be written any more."""

import errno
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

ROOM = 1 << 20
"""Below so many free bytes a write that failed is put down to the disk."""

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def why_unwritten(folder: Path, error: Exception) -> str:
    """Return why a write in a folder failed: that the disk is full, or what the error says."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return f"{folder} is gone"
    if free < ROOM:
        return f"the disk is full ({free:,} bytes free)"
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most != resource.RLIM_INFINITY:  # which torch reports in words about its own archive
        return f"a file may have {most:,} bytes at most here (ulimit -f)"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextmanager
def unwritten_told(folder: Path) -> Iterator[None]:
    """Name what cannot be written, and how to go on, where an error of the system does not.

    Args:
        folder: of the run, which is named where the error names no file.

    Raises:
        OSError: something in `folder` cannot be written; with a sentence.
    """
    try:
        yield
    except SafetensorError as error:  # of a model that is saved; who loads one tells it otherwise
        raise _in_words(folder, folder, error) from error
    except OSError as error:
        gone = error.errno == errno.ENOENT and not folder.exists()
        if error.errno not in _OF_WRITING and not gone:
            raise
        raise _in_words(folder, Path(error.filename or folder), error) from error


def _in_words(folder: Path, path: Path, error: Exception) -> OSError:
    why = why_unwritten(folder, error)
    return OSError(
        f"{path} cannot be written: {why}; once it can, resume=true continues the run from its "
        "newest checkpoint"
    )
