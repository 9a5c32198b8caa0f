"""`import kit` offers what most people want, and loads it when it is first used."""

import importlib
import re
import subprocess
import sys

import kit

MEASURE = """
import sys, time
started = time.perf_counter()
import kit
print(time.perf_counter() - started, *(name for name in ("torch", "pandas") if name in sys.modules))
"""


def test_the_import_is_quick_and_loads_no_library():
    found = [
        subprocess.run(
            [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(3)
    ]
    assert [libraries for _, *libraries in found] == [[], [], []]
    assert min(float(seconds) for seconds, *_ in found) < 0.05


def test_every_name_that_is_offered_is_there():
    assert all(getattr(kit, name) is not None for name in kit.__all__)
    assert set(kit.__all__) <= set(dir(kit))
    assert not hasattr(kit, "no_such_name")


def test_what_a_terminal_would_obey_is_written_as_in_source_code():
    text = "a\x1b[31m b\r c\x9b d\u202e e\nü 頭\t"
    assert kit.escape_controls(text) == "a\\x1b[31m b\\r c\\x9b d\\u202e e\\nü 頭\\t"
    assert kit.escape_controls(text, keep="\n\t").endswith(" e\nü 頭\t")


def test_the_front_page_of_the_reference_names_what_is_there():
    names = re.findall(r"`(kit\.[\w.]+|[a-z_]+)`", kit.__doc__)
    assert len(names) > 10
    for name in names:
        module, found = name.split(".")[1:], kit
        for part in module or [name]:
            if not hasattr(found, part):
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)
