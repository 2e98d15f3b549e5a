"""The Python standard library's own source: real, long documents, on every machine."""

import sysconfig
from pathlib import Path

from unimem.data.documents import DataError
from unimem.data.formats import Record
from unimem.data.settings import StdlibSettings
from unimem.data.sources import FileSource, Split, held_out

_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


def module_of(name: str) -> str:
    """Return the top-level module that a file belongs to, as code or as its test.

    `json/decoder.py`, `test/test_json/test_scanner.py` and `test/json_tests.py` are all `json`;
    `_strptime.py` goes with `strptime`.
    """
    top, *rest = Path(name).with_suffix("").parts
    if top == "test" and rest:
        top = rest[0].removeprefix("test_")
        if top == rest[0]:
            top = top.removesuffix("_tests").removesuffix("tester")
    return top.lstrip("_") or top


def stdlib_source(settings: StdlibSettings) -> FileSource:
    """Find the sources, and split them by module.

    Raises:
        DataError: this Python has no library in source form.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    files = {
        path.relative_to(library).as_posix(): path
        for path in library.rglob("*.py")
        if not _NOT_LIBRARY & set(path.parts[len(library.parts) :]) and not _is_of_machine(path)
    }
    if not files:
        raise DataError(f"no standard library source in {library}: use data=text data.path=FOLDER")

    def assign(record: Record) -> Split:
        return held_out(module_of(record.name), settings.held_out)

    return FileSource(files=dict(sorted(files.items())), assign=assign)


def _is_of_machine(path: Path) -> bool:
    """Whether a file describes the machine that Python was built on."""
    return path.name.startswith("_sysconfigdata") or path.parent.name.startswith("config-")
