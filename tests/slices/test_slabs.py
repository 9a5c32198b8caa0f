"""Thin series → slabs: which slices are averaged, and which are left alone."""

import numpy as np
import pandas as pd
import pytest

from kit.slices.slabs import average_thin


def make(spacing, count, thickness=np.nan, name="s"):
    """A series of `count` slices, and its row of the table of series."""
    slices = pd.DataFrame(
        {
            "path": [f"{name}{number}" for number in range(count)],
            "series": name,
            "seq": np.arange(count) + 1,
            "position": 7.0 + spacing * np.arange(count),
        }
    )
    row = {"series": name, "spacing": spacing, "SliceThickness": thickness}
    return slices, pd.DataFrame([row])


def test_ten_slices_of_1_mm_are_two_slabs_of_5():
    slabs = average_thin(*make(1.0, 10, 1.0))
    assert slabs["source"].tolist() == [
        ("s0", "s1", "s2", "s3", "s4"),
        ("s5", "s6", "s7", "s8", "s9"),
    ]
    assert slabs[["path", "averaged", "seq", "position"]].values.tolist() == [
        ["s2", 5, 1, 9.0],
        ["s7", 5, 2, 14.0],
    ]


def test_slices_that_overlap_are_not_averaged_beyond_the_thickness_asked_for():
    # Of 3 mm, 1 mm apart: three of them are 5 mm thick together, five would be 7.
    assert average_thin(*make(1.0, 10, 3.0))["source"].tolist() == [
        ("s1", "s2", "s3"),
        ("s6", "s7", "s8"),
    ]
    thick = average_thin(*make(1.0, 10, 5.0))
    assert thick["source"].tolist() == [("s2",), ("s7",)]


def test_of_two_acquisitions_at_the_same_places_both_are_in_a_slab_as_thick_as_ever():
    (slices, described), (again, _) = make(1.0, 10, 1.0), make(1.0, 10, 1.0)
    both = pd.concat([slices, again.assign(path=again["path"] + "b")]).sort_values("position")
    slabs = average_thin(both.reset_index(drop=True), described)
    assert slabs["averaged"].tolist() == [10, 10]
    assert sorted(slabs["source"][0]) == sorted(f"s{n}{b}" for n in range(5) for b in ("", "b"))
    thick = average_thin(both.reset_index(drop=True), described.assign(SliceThickness=3.0))
    assert sorted(thick["source"][1]) == ["s6", "s6b", "s7", "s7b", "s8", "s8b"]


def test_a_gap_makes_no_slab():
    slices, described = make(1.0, 20, 1.0)
    slabs = average_thin(slices.drop(index=range(3, 15)).reset_index(drop=True), described)
    assert slabs["averaged"].tolist() == [3, 5]
    assert slabs["seq"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("spacing", "slab", "expected"),
    [
        (1.99, None, [3, 2, 3, 2]),
        (2.0, None, [1] * 10),
        (2.0, 5, [2, 3, 2, 3]),
        (5.0, 5, [1] * 10),
        (1.0, 0, [1] * 10),
        (1.0, 10, [10]),
    ],
)
def test_thin_series_alone_are_averaged(spacing, slab, expected):
    found = average_thin(*make(spacing, 10), slab)
    assert found["averaged"].tolist() == expected


def test_the_thick_series_beside_a_thin_one_stays_as_it_is():
    (thin, about_thin), (thick, about_thick) = make(1.0, 10), make(5.0, 3, name="t")
    found = average_thin(pd.concat([thick, thin]), pd.concat([about_thick, about_thin]))
    assert found["averaged"].tolist() == [1, 1, 1, 5, 5]
    assert found["source"].tolist()[:3] == ["t0", "t1", "t2"]
