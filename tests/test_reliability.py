"""The table of promises names tests that are there."""

import re

from conftest import ROOT


def test_every_test_that_the_reliability_page_names_exists():
    text = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    named = re.findall(r"((?:\w+/)?test_\w+\.py)::(\w+)", text)
    assert len(named) > 30
    slow = set(re.findall(r"mark\.slow\n(?:@.*\n)*def (\w+)", read("**/test_*.py")))
    for file, name in named:
        assert re.search(rf"^def {name}\(", read(file), re.MULTILINE), f"{file}::{name}"
        row = next(line for line in text.splitlines() if name in line)
        assert (name in slow) == (name in row.partition("*slow*")[2]), f"{name}: slow or not"


def read(pattern: str) -> str:
    return "\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "tests").glob(pattern)))
