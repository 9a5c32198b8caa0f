import numpy as np
import pandas as pd
import pytest
from conftest import golden

from kit.competition import LABELS, LabelError, to_submission
from kit.ensemble import bag
from kit.submission import (
    fill_missing,
    normalize_text,
    validate_submission,
    write_submission,
)


def make_wide(images, value=0.25):
    return pd.DataFrame(value, index=pd.Index(images), columns=list(LABELS))


def write_sample(path, images):
    to_submission(make_wide(images, 0.5)).to_csv(path, index=False)
    return path


def test_the_written_file_equals_the_published_submission_to_six_decimals(tmp_path):
    values = golden("submission")
    members = [
        pd.DataFrame(member, index=values["images"], columns=list(LABELS))
        for member in values["predictions"]
    ]
    write_submission(bag(members), tmp_path / "submission.csv")
    written = pd.read_csv(tmp_path / "submission.csv")
    np.testing.assert_array_equal(written["ID"], values["ID"])
    np.testing.assert_allclose(written["Label"], values["Label"], atol=5.1e-7)


def test_bytes_of_a_small_file(tmp_path):
    wide = make_wide(["ID_a"], 0.0)
    wide.loc["ID_a", ["subdural", "any"]] = 1 / 3, 1.0
    write_submission(wide, tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == (
        '"ID","Label"\nID_a_epidural,0.000010\nID_a_intraparenchymal,0.000010\n'
        "ID_a_intraventricular,0.000010\nID_a_subarachnoid,0.000010\n"
        "ID_a_subdural,0.333333\nID_a_any,0.999990\n"
    ).replace('"', "")


@pytest.mark.parametrize("seed", range(3))
def test_the_rows_have_the_order_of_the_sample_whatever_it_is(tmp_path, seed):
    sample = write_sample(tmp_path / "sample.csv", ["ID_b", "ID_a", "ID_c"])
    shuffled = pd.read_csv(sample).sample(frac=1, random_state=seed)
    shuffled.to_csv(sample, index=False)
    wide = make_wide(["ID_a", "ID_b", "ID_c"]) + np.arange(18).reshape(3, 6) / 100
    write_submission(wide, tmp_path / "s.csv", sample)
    written = pd.read_csv(tmp_path / "s.csv")
    assert written["ID"].tolist() == shuffled["ID"].tolist()
    for name, value in written.to_numpy():
        image, _, label = name.rpartition("_")
        assert value == pytest.approx(wide.loc[image, label], abs=1e-6)


def test_a_file_with_the_samples_ids_in_any_order_is_valid(tmp_path):
    sample = write_sample(tmp_path / "sample.csv", ["ID_a", "ID_b"])
    shuffled = pd.read_csv(sample).sample(frac=1, random_state=0)
    shuffled.to_csv(tmp_path / "s.csv", index=False)
    validate_submission(tmp_path / "s.csv", sample)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_valid_file_is_sent_without_mark_blank_lines_and_carriage_returns(
    tmp_path, newline, mark
):
    lines = ["ID,Label", "", *ROWS[:3], ",", *ROWS[3:], "", ""]
    path = tmp_path / "s.csv"
    path.write_bytes((mark + newline.join(lines)).encode())
    table = validate_submission(path)
    clean = "\n".join(["ID,Label", *ROWS, ""]).encode()
    assert normalize_text(path.read_bytes()) == clean == normalize_text(clean)
    assert len(table) == 6


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (["ID_a"], r"lacks ID_b \(1 image missing, 0 too many\)"),
        (["ID_a", "ID_b", "ID_c"], "has ID_c, not in the sample"),
        (["ID_a", "ID_b", "ID_c", "ID_d"], "ID_c, not in the sample .0 images missing, 2 too many"),
    ],
)
def test_a_file_that_is_not_the_samples_leaves_the_earlier_one(tmp_path, images, reason):
    sample = write_sample(tmp_path / "sample.csv", ["ID_a", "ID_b"])
    path = tmp_path / "s.csv"
    path.write_text("earlier")
    with pytest.raises(LabelError, match=reason):
        write_submission(make_wide(images), path, sample)
    assert path.read_text() == "earlier"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.csv", "sample.csv"]


def test_a_value_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(LabelError, match="ID_a has a probability that is not finite"):
        write_submission(make_wide(["ID_a"], np.nan), tmp_path / "s.csv")


ROWS = [f"ID_a_{label},0.5" for label in LABELS]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["Id,Label", *ROWS], "the header must be ID,Label, not Id,Label"),
        (["ID,Label", *ROWS[:5]], "row ID_a_any is missing"),
        (["ID,Label", *ROWS, ROWS[2]], "line 8 .*occurs twice"),
        (["ID,Label", *ROWS[:5], "ID_a_any,nan"], "line 7 .*no number in"),
        (["ID,Label", *ROWS[:5], "ID_a_any,1.5"], "line 7 .*no number in"),
        (["ID,Label", *ROWS[:5], "ID_a_any,-1e-9"], "line 7 .*no number in"),
        (["ID,Label", *ROWS[:5], "ID_a_any,inf"], "line 7 .*no number in"),
        (["ID,Label", *ROWS[:5], "ID_a_any,high"], "line 7 .*no number in"),
        (["ID,Label", *ROWS[:5], '"ID\n_a_any",0.5'], "line 7 .*names no image as a CSV can"),
        (["ID,Label", *ROWS, '"ID""b_any",0.5'], "line 8 .*names no image as a CSV can"),
        (["ID,Label", *ROWS, '"ID,b_any",0.5'], "line 8 .*names no image as a CSV can"),
        (["ID,Label", *ROWS, "\x1b[2Jb_any,0.5"], "line 8 .*names no image as a CSV can"),
        (["ID,Label", *ROWS[:5], "ID_a_all,0.5"], "line 7 .*none of the six|line 7 .*six labels"),
        ([], "not a CSV file"),
        (["ID,Label"], "there is no row in it"),
    ],
)
def test_a_wrong_file_is_refused_naming_row_and_reason(tmp_path, lines, reason):
    path = tmp_path / "s.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(LabelError, match=reason) as caught:
        validate_submission(path)
    assert str(path) in str(caught.value)


def test_a_missing_slice_is_interpolated_by_position():
    predictions = make_wide(["s1", "s3", "other"])
    predictions.loc["s1"], predictions.loc["s3"] = 0.2, 0.6
    places = pd.DataFrame(
        {"series": ["A", "A", "A", "A", "B"], "position": [0.0, 5.0, 20.0, 30.0, 1.0]},
        index=["s1", "s2", "s3", "s4", "other"],
    )
    images = pd.Index(["s4", "s3", "s2", "s1", "stranger"])
    prior = np.arange(6) / 10
    complete, filled = fill_missing(predictions, images, places, prior)
    assert list(complete.index) == list(images)
    assert complete.loc["s2", "any"] == pytest.approx(0.75 * 0.2 + 0.25 * 0.6)
    assert complete.loc["s4", "any"] == pytest.approx(0.6)  # beyond the end: the nearest
    assert complete.loc["stranger"].tolist() == prior.tolist()
    assert dict(filled.to_numpy().tolist()) == {
        "s4": "neighbours s3",
        "s2": "neighbours s1 and s3",
        "stranger": "training prior",
    }
