"""How often each kind of failure was tried, where, and how often nothing was lost.

A module of its own: pytest loads `conftest.py` a second time under another name.
"""

# (what, where) of each try, and whether what was left ended as if nothing had happened.
TRIES: list[tuple[str, str, bool]] = []


def note_tries(what: str, places: list[str], passed: bool) -> None:
    """Note tries for the table at the end, and fail where they have not passed."""
    TRIES.extend((what, place, passed) for place in places)
    assert passed, f"{what}: after {places} a run ended otherwise"


def format_table() -> list[str]:
    """The lines of the table; none without tries."""
    if not TRIES:
        return []
    lines = ["", f"{'failures at any instant':<40}{'tries':>6}{'passed':>8}"]
    for what in dict.fromkeys(what for what, _, _ in TRIES):
        mine = [(place, passed) for kind, place, passed in TRIES if kind == what]
        lines.append(f"{what:<40}{len(mine):>6}{sum(p for _, p in mine):>8}")
        for place in dict.fromkeys(place for place, _ in mine):
            here = [passed for other, passed in mine if other == place]
            lines.append(f"  {place:<38}{len(here):>6}{sum(here):>8}")
    return lines
