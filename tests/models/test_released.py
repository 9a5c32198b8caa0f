"""The facts about released models are whole."""

from kit.models.kinds import KINDS
from kit.models.released import RELEASED, list_released


def test_every_kind_has_its_facts():
    assert set(KINDS) <= set(RELEASED)
    for entry in list_released():
        assert all(entry.values()), entry["name"]
        assert {"licence", "size", "source", "labels", "trained_on", "revision"} <= set(entry)
