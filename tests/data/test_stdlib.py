import os
import subprocess
import sys

import pytest

from unimem.data.formats import Record
from unimem.data.sources import Skips, held_out
from unimem.data.stdlib import module_of, stdlib_source


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("json/decoder.py", "json"),
        ("test/test_json/test_decode.py", "json"),
        ("argparse.py", "argparse"),
        ("test/test_argparse.py", "argparse"),
        ("test/datetimetester.py", "datetime"),
        ("test/string_tests.py", "string"),
        ("idlelib/idle_test/test_run.py", "idlelib"),
        ("unittest/mock.py", "unittest"),
        ("test/test_unittest/test_case.py", "unittest"),
        ("doctest.py", "doctest"),
        ("test/test_doctest.py", "doctest"),
        ("_strptime.py", "strptime"),
        ("test/support/os_helper.py", "support"),
        ("test/__init__.py", "init__"),
        ("this.py", "this"),
    ],
)
def test_a_module_and_its_tests_are_one_group(name, module):
    assert module_of(name) == module


def test_split_is_pinned():
    """The same modules are held out on every machine and with every version of Python."""
    modules = ["json", "argparse", "typing", "asyncio", "email", "ast", "decimal", "pickle", "re"]
    assert [m for m in modules if held_out(m, 0.3) == "validation"] == [
        "json",
        "decimal",
        "re",
    ]


def test_share_of_groups_held_out():
    sides = [held_out(f"module{i}", 0.1) for i in range(10_000)]
    assert abs(sides.count("validation") - 1000) < 100


def test_sources(settings):
    source = stdlib_source(settings("stdlib"))
    names = list(source.files)
    assert names == sorted(names)
    assert {"json/decoder.py", "argparse.py"} <= set(names)
    assert not [name for name in names if "site-packages" in name or "_sysconfigdata" in name]
    sides = {}
    for name in names:
        sides.setdefault(module_of(name), set()).add(source.assign(Record(name)))
    assert all(len(split) == 1 for split in sides.values())
    skips = Skips()
    first = next(source.texts("train", skips))
    assert first.text == source.files[first.name].read_bytes().decode("utf-8")
    totals = [source.total("train"), source.total("validation")]
    assert sum(total or 0 for total in totals) == len(names)


def test_split_does_not_depend_on_the_hash_seed():
    code = (
        "from unimem.data.sources import held_out;"
        "print([i for i in range(200) if held_out(str(i), 0.1) == 'validation'])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
