"""A folder of scans, predicted by a finished run: the table, what is written, what is refused."""

import dataclasses
import json
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import copy_run, predict_folder, shared
from dicom_files import CORONAL, write_series

import kit
from kit import images
from kit.cli.commands import main
from kit.competition import LABELS
from kit.dicom import read_hounsfield
from kit.ensemble import name_columns
from kit.evaluation.inputs import read_predictions
from kit.runs.directory import RunError
from kit.runs.tables import read_slices
from kit.slices import index_slices
from kit.training.checkpoints import TrainingError, load_weights, save_tensors


@pytest.fixture(scope="module")
def one_series(small_run, tmp_path_factory):
    """A folder with the files of one test series."""
    folder = tmp_path_factory.mktemp("scans")
    test = read_slices(small_run).query("split == 'test'")
    for path in test.loc[test["series"] == test["series"].iloc[0], "path"]:
        shutil.copy(path, folder)
    return folder


def test_the_function_and_the_command_give_the_same_table(small_run, one_series, tmp_path):
    table = kit.predict(str(one_series), small_run.path, tmp_path / "function.csv", workers=0)
    command = ["predict", one_series, "--run", small_run.path, "--out", tmp_path / "command.csv"]
    assert main([*map(str, command), "--workers", "0", "--quiet"]) == 0
    assert len(list(tmp_path.iterdir())) == 8  # with the manifests
    for rest in (".csv", ".skipped.csv"):
        written = [(tmp_path / f"{by}{rest}").read_bytes() for by in ("function", "command")]
        assert written[0] == written[1]
    read = pd.read_csv(tmp_path / "function.csv", dtype={"PatientID": str})
    assert list(table) == list(read)
    np.testing.assert_allclose(table[list(LABELS)], read[list(LABELS)], rtol=1e-5)
    assert table["SOPInstanceUID"].tolist() == read["SOPInstanceUID"].tolist()


def test_a_loaded_model_predicts_without_leaving_a_file(
    small_run, one_series, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = kit.load_model(str(small_run.path))
    assert repr(model) == (f"<TrainedModel {small_run}: recipe demo, 2 classifiers, 4 LSTMs>")
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.recipe = None
    before = sorted(one_series.iterdir())
    table = kit.predict(one_series, model, None, "slice", workers=0)
    assert (len(table), table["SeriesInstanceUID"].nunique()) == (len(before), 1)
    assert sorted(one_series.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_complete_run_is_not_loaded(small_run, tmp_path):
    with pytest.raises(RunError, match="there is no run here"):
        kit.load_model(tmp_path / "nowhere")
    run = copy_run(small_run, tmp_path / "run")
    (run.lstm(1, 1) / "epoch2.safetensors").unlink()
    with pytest.raises(RunError, match=r"epoch2\.safetensors is missing: the run .* not complete"):
        kit.load_model(str(run.path))


def test_a_page_that_fails_does_not_cost_the_predictions(
    small_run, one_series, tmp_path, monkeypatch
):
    def fail(*arguments):
        raise OSError("no page today")

    monkeypatch.setattr("kit.report.scans_page.write_scan_report", fail)
    out = tmp_path / "p.csv"
    command = ["predict", one_series, "--run", small_run.path, "--out", out, "--report"]
    assert main([*map(str, command), "--workers", "0", "--quiet"]) == 1
    assert len(pd.read_csv(out)) == len(list(one_series.iterdir()))
    assert out.with_suffix(".json").exists()
    assert (tmp_path / ".p.kit-work" / "1" / "embeddings.npy").exists()  # for the next call


def test_own_scans_are_predicted_in_order_and_the_unusable_listed(small_run, tmp_path):
    folder = shared("data/dcm_qa_ct")
    table, skipped = predict_folder(folder, small_run, tmp_path / "out" / "p.csv", workers=1)
    written = pd.read_csv(tmp_path / "out" / "p.csv")
    assert len(written) == len(table) == 56
    ge = table[table["path"].str.contains("/GE/")]
    numbers = ge["path"].str.extract(r"(\d+)\.dcm$")[0].astype(int)
    assert numbers.tolist() == list(range(1, 29))
    assert sorted(skipped["path"].str.extract(r"S21570/(.*)$")[0]) == [
        "S1000/I10",
        "S4010/I10",
        "S4010/I40",
    ]
    listed = pd.read_csv(tmp_path / "out" / "p.skipped.csv")
    assert listed["reason"].notna().all()
    assert len(listed) == 3
    values = written[list(LABELS)].to_numpy()
    assert ((values > 0) & (values < 1)).all()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "p.csv",
        "p.json",
        "p.series.csv",
        "p.skipped.csv",
    ]


def test_own_scans_get_the_bag_of_all_members(small_run, small_data, tmp_path):
    """The competition's test part, predicted as own scans, equals the run's own test table."""
    table, _ = predict_folder(small_data / "stage_2_test", small_run, tmp_path / "p.csv")
    expected = pd.read_parquet(small_run.test).set_index("SOPInstanceUID")
    found = table.set_index("SOPInstanceUID").loc[expected.index, list(LABELS)]
    np.testing.assert_allclose(found, expected[name_columns("bag")], atol=2e-3)


def test_a_folder_without_a_usable_slice_says_why(small_run, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"no usable CT slice among 1 file;.*not a DICOM file"):
        predict_folder(tmp_path, small_run, tmp_path / "p.csv")


def test_a_prediction_that_was_broken_off_goes_on(small_run, small_data, tmp_path, monkeypatch):
    folder, out = tmp_path / "scans", tmp_path / "out.csv"
    shutil.copytree(small_data / "stage_2_test", folder)
    expected, _ = predict_folder(folder, small_run, tmp_path / "whole.csv", workers=0)
    original, embedded = images.load_batches, []

    def load_batches(dataset, batches, workers, stop_at=None):
        for number, batch in enumerate(original(dataset, batches, workers)):
            if number == stop_at:
                raise KeyboardInterrupt
            embedded.append(len(batch["rows"]))
            yield batch

    monkeypatch.setattr("kit.embeddings.writer.FLUSH_SECONDS", -1)
    for change in (None, folder / f"{expected['SOPInstanceUID'].iloc[0]}.dcm"):
        monkeypatch.setattr(images, "load_batches", partial(load_batches, stop_at=2))
        with pytest.raises(KeyboardInterrupt):
            predict_folder(folder, small_run, out, workers=0)
        assert not out.exists()
        if change is not None:
            change.touch()  # another file, perhaps: all is embedded anew
        done = sum(embedded) if change is None else 0
        embedded.clear()
        monkeypatch.setattr(images, "load_batches", load_batches)
        table, _ = predict_folder(folder, small_run, out, workers=0)
        assert sum(embedded) == 2 * len(table) - done  # by the classifiers of two folds
        assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
        assert not (tmp_path / ".out.kit-work").exists()
        out.unlink()
        embedded.clear()


def test_pseudonyms_stand_for_patient_ids_everywhere(small_run, small_data, tmp_path):
    folder = small_data / "stage_2_test"
    plain, _ = predict_folder(folder, small_run, tmp_path / "plain.csv", workers=0)
    out = tmp_path / "out.csv"
    command = ["predict", folder, "--run", small_run.path, "--out", out, "--report"]
    assert main([*map(str, command), "--pseudonymize", "--workers", "0", "--quiet"]) == 0
    table = pd.read_csv(out)
    assert set(table["PatientID"]) == {
        f"patient{n + 1}" for n in range(table["PatientID"].nunique())
    }
    np.testing.assert_allclose(table[list(LABELS)], plain[list(LABELS)], rtol=1e-5)
    for name in ("out.csv", "out.json", "out.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert not [patient for patient in set(plain["PatientID"]) if patient in text]


def test_the_table_must_be_a_csv_file(small_run, small_data, tmp_path):
    with pytest.raises(ValueError, match=r"p\.json: the table's name must end in \.csv"):
        predict_folder(small_data / "stage_2_test", small_run, tmp_path / "p.json")


def test_weights_that_are_not_finite_predict_nothing(small_run, small_data, tmp_path):
    run = copy_run(small_run, tmp_path / "run")
    for path, name in (
        (run.lstm(0, 1) / "epoch2.safetensors", "linear.bias"),
        (run.classifier(0) / "epoch1.safetensors", "head.bias"),
    ):
        tensors, metadata = load_weights(path)
        tensors[name][0] = float("nan")
        save_tensors(path, tensors, metadata)
        with pytest.raises(TrainingError, match=rf"{path.name}: the weights {name} are not finite"):
            predict_folder(small_data / "stage_2_test", run, tmp_path / "p.csv", workers=0)
    assert not (tmp_path / "p.csv").exists()


def test_the_wrong_intercept_is_reported_for_own_scans(small_run, small_data, tmp_path):
    slices = read_slices(small_run)
    wrong = slices.loc[slices["repaired"], "path"].iloc[0]
    (tmp_path / "scans").mkdir()
    shutil.copy(wrong, tmp_path / "scans")
    table, _ = predict_folder(tmp_path / "scans", small_run, tmp_path / "p.csv", workers=0)
    assert table["repaired"].tolist() == [True]
    assert pd.read_csv(tmp_path / "p.csv")["repaired"].tolist() == [True]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_two_patients_of_the_same_uids_are_each_predicted_by_their_own_pixels(
    small_run, small_data, tmp_path
):
    alone = {}
    for patient, part in (("A", 0), ("B", 1)):
        series = [group for _, group in read_slices(small_run).groupby("series")][part]
        for number, path in enumerate(series["path"].head(4)):
            dataset = pydicom.dcmread(path)
            dataset.PatientID, dataset.StudyInstanceUID = patient, "1.2"
            dataset.SeriesInstanceUID, dataset.SOPInstanceUID = "1.2.3", f"1.2.3.{number}"
            (tmp_path / "scans" / patient).mkdir(parents=True, exist_ok=True)
            dataset.save_as(tmp_path / "scans" / patient / f"{number}.dcm")
        folder = tmp_path / "scans" / patient
        alone[patient], _ = predict_folder(folder, small_run, tmp_path / f"{patient}.csv")
    both, skipped = predict_folder(tmp_path / "scans", small_run, tmp_path / "both.csv")
    assert skipped.empty
    expected = pd.concat(alone.values(), ignore_index=True)
    assert both["SOPInstanceUID"].tolist() == expected["SOPInstanceUID"].tolist()
    assert both["SOPInstanceUID"].duplicated().sum() == 4
    np.testing.assert_allclose(both[list(LABELS)], expected[list(LABELS)], atol=1e-5)
    assert not np.allclose(expected[list(LABELS)][:4], expected[list(LABELS)][4:], atol=1e-4)


@pytest.fixture(scope="module")
def hospital(small_data, tmp_path_factory):
    """A study as a hospital sends it: axial, coronal, bone, contrast and thin series; and another.

    Their images are those of the competition's test part.
    """
    folder = tmp_path_factory.mktemp("hospital")
    images = [
        read_hounsfield(path) for path in sorted((small_data / "stage_2_test").iterdir())[:12]
    ]
    kinds = {
        "1": {"plane": CORONAL},
        "2": {"ConvolutionKernel": "BONE"},
        "3": {"ContrastBolusAgent": "IOHEXOL"},
        "4": {"spacing": 1.0, "ConvolutionKernel": "H30s"},
        "5": {
            "ConvolutionKernel": "H30s",
            "SeriesDescription": "HEAD 5mm",
            "StudyDescription": "Doe^Jane after a fall",
        },
        "6": {"StudyInstanceUID": "1.2.2", "ContrastBolusAgent": "IOHEXOL"},
    }
    for name, how in kinds.items():
        write_series(folder, name, stored=lambda number: images[number], **how)
    return folder


def test_of_a_folder_with_five_series_the_right_one_answers_for_the_study(
    small_run, hospital, tmp_path
):
    model = kit.load_model(small_run.path)
    slices = kit.predict(hospital, model, workers=0)
    found = kit.predict(hospital, model, tmp_path / "p.csv", by="study", workers=0)
    assert found["SeriesInstanceUID"].tolist() == ["1.2.5", "1.2.6"]
    assert found["warnings"].tolist() == ["", "contrast"]
    assert found["series_count"].tolist() == [5, 1]
    for _, row in found.iterrows():
        part = slices[slices["SeriesInstanceUID"] == row["SeriesInstanceUID"]]
        for label in LABELS:
            assert row[label] == pytest.approx(part[label].max(), rel=1e-5)
            best = part.loc[part[label].idxmax()]
            assert row[f"{label}_SOPInstanceUID"] == best["SOPInstanceUID"]
            assert row[f"{label}_InstanceNumber"] == best["InstanceNumber"]
    read = pd.read_csv(tmp_path / "p.csv")
    assert list(read) == list(found)
    series = pd.read_csv(tmp_path / "p.series.csv")
    assert series["SeriesInstanceUID"].tolist() == [f"1.2.{n}" for n in (2, 3, 4, 5, 6, 1)]
    assert series["StudyDescription"].dropna().tolist() == ["Doe^Jane after a fall"]
    assert series["plane"].tolist() == ["axial"] * 5 + ["coronal"]
    manifest = json.loads((tmp_path / "p.json").read_text())
    assert manifest["slices"] == 24  # those of the two series alone were computed


def test_a_table_says_what_predicted_it_and_what_was_left_out(
    small_run, hospital, tmp_path, caplog
):
    found = kit.predict(hospital, small_run.path, workers=0)
    assert found.attrs["provenance"]["synthetic"]
    assert {one["code"] for one in found.attrs["skipped"]} == {"plane is not axial"}
    assert len(found.attrs["skipped"]) == 12
    assert "12 files skipped: plane is not axial (12)" in caplog.messages
    assert [one["slices"] for one in found.attrs["series"]] == [12, 12, 12, 12, 12, 0]
    found.to_parquet(tmp_path / "p.parquet")  # which writes attrs as JSON
    assert pd.concat([found, found]).attrs == found.attrs


def test_a_unit_that_there_is_not_is_refused_before_anything_is_read(small_run, tmp_path):
    with pytest.raises(kit.InputError, match="a table by 'patient' is not known: it is by slice"):
        kit.predict(tmp_path / "nowhere", small_run.path, by="patient")


def test_descriptions_are_left_out_with_the_names(small_run, hospital, tmp_path):
    predict_folder(hospital, small_run, tmp_path / "p.csv", pseudonymize=True, workers=0)
    series = pd.read_csv(tmp_path / "p.series.csv")
    assert series["PatientID"].unique().tolist() == ["patient1"]
    assert series["SeriesDescription"].isna().all()
    assert series["StudyDescription"].isna().all()
    assert "Doe" not in "".join(path.read_text() for path in tmp_path.iterdir())
    assert series["slices"].tolist() == [12, 12, 12, 12, 12, 0]


def read_volume(folder):
    slices, _ = index_slices(folder, 1)
    volume = np.stack([read_hounsfield(path) for path in slices["path"]])
    return volume, slices["position"].to_numpy()


def test_an_array_in_memory_is_predicted_as_its_files_are(small_run, one_series, tmp_path):
    model = kit.load_model(small_run.path)
    expected = model.predict(one_series, workers=0)
    volume, positions = read_volume(one_series)
    found = model.predict(volume[::-1], tmp_path / "p.csv", positions=positions[::-1])
    numbers = [*LABELS, *name_columns("classifier"), "seq", "position"]
    np.testing.assert_allclose(found[numbers], expected[numbers], rtol=1e-6)
    assert found["SOPInstanceUID"].tolist() == [str(n) for n in reversed(range(len(volume)))]
    assert model.predict(volume, positions=positions, by="study")["any"].tolist() == [
        pytest.approx(expected["any"].max(), rel=1e-6)
    ]
    assert len(pd.read_csv(tmp_path / "p.csv")) == len(volume)
    once = kit.predict(volume[::-1], small_run.path, positions=positions[::-1])
    pd.testing.assert_frame_equal(once, found)
    with pytest.raises(kit.InputError, match="positions are those of an array's slices"):
        kit.predict(one_series, model, positions=positions)
    with pytest.raises(TypeError, match="position"):
        kit.predict(volume, model, position=positions)


def test_a_second_call_loads_nothing(small_run, one_series, monkeypatch):
    model = kit.load_model(small_run.path)
    first = model.predict(one_series, workers=0)

    def refuse(*_):
        raise AssertionError("weights are read again")

    for name in ("extraction.load_classifier", "extraction.hash_file"):
        monkeypatch.setattr(f"kit.embeddings.{name}", refuse)
    monkeypatch.setattr("kit.runs.members.load_lstm", refuse)
    files = sorted(one_series.iterdir())
    pd.testing.assert_frame_equal(model.predict(files, workers=0), first)
    with pytest.raises(AssertionError, match="read again"):
        kit.predict(one_series, small_run.path, workers=0)


def test_models_that_do_not_fit_into_memory_together_are_loaded_anew(
    small_run, one_series, monkeypatch
):
    expected = kit.predict(one_series, small_run.path, workers=0)
    monkeypatch.setattr("kit.runs.members._choose_room", lambda device: 1)
    model = kit.load_model(small_run.path)
    for _ in range(2):
        pd.testing.assert_frame_equal(model.predict(one_series, workers=0), expected)
    assert not model.loaded._lstms


def test_a_table_that_is_there_is_replaced_only_if_asked(small_run, one_series, tmp_path):
    out = tmp_path / "p.csv"
    out.write_text("mine")
    with pytest.raises(ValueError, match=r"p\.csv exists: name another, or replace it by --overw"):
        kit.predict(one_series, small_run.path, out, workers=0)
    assert (out.read_text(), len(list(tmp_path.iterdir()))) == ("mine", 1)
    (tmp_path / ".p.kit-work").mkdir()  # that another call left does not make it this one's
    (tmp_path / ".p.kit-work" / "source.json").write_text("{}")
    with pytest.raises(ValueError, match=r"p\.csv exists: name another, or"):
        kit.predict(one_series, small_run.path, out, workers=0)
    assert out.read_text() == "mine"
    found = kit.predict(one_series, small_run.path, out, overwrite=True, workers=0)
    assert len(kit.read_table(out)) == len(found)


def test_what_an_interrupted_call_left_is_replaced_by_the_same_call_alone(
    small_run, one_series, tmp_path, monkeypatch
):
    out = tmp_path / "p.csv"
    monkeypatch.setattr("kit.runs.prediction.write_manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # the table is written, the manifest is not
        kit.predict(one_series, small_run.path, out, workers=0)
    monkeypatch.undo()
    other = sorted(one_series.iterdir())[:2]
    with pytest.raises(ValueError, match=r"p\.csv exists"):
        kit.predict(other, small_run.path, out, workers=0)
    found = kit.predict(one_series, small_run.path, out, workers=0)
    assert len(kit.read_table(out)) == len(found)
    assert not (tmp_path / ".p.kit-work").exists()


@pytest.mark.parametrize("name", ["p.json", "p.series.csv", "p.skipped.csv", "p.html"])
def test_no_file_beside_the_table_is_replaced_unasked(name, small_run, one_series, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name} exists"):
        kit.predict(one_series, small_run.path, tmp_path / "p.csv", workers=0)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_weights_that_change_on_the_disk_are_loaded_again(small_run, one_series, tmp_path):
    run = copy_run(small_run, tmp_path / "run")
    model = kit.load_model(run.path)
    first = model.predict(one_series, workers=0)
    for path in [path for pair in model.members.items() for path in (pair[0], *pair[1])]:
        tensors, metadata = load_weights(path)
        turned = {name: -tensor if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
        save_tensors(path, turned, metadata)
        again = model.predict(one_series, workers=0)
        pd.testing.assert_frame_equal(again, kit.predict(one_series, run.path, workers=0))
        numbers = [*LABELS, *name_columns("classifier")]
        assert not np.allclose(again[numbers], first[numbers])
        first = again


IDS = ["007", "NA", "=1+2", "-5", "1e5", "'=x"]


def test_ids_come_back_as_they_were_and_run_in_no_spreadsheet(small_run, hospital, tmp_path):
    for number, name in enumerate(IDS):
        images = [read_hounsfield(path) for path in sorted((hospital / "5").iterdir())[:2]]
        study = {"PatientID": name, "StudyInstanceUID": f"1.3.{number}"}
        write_series(tmp_path / "s", str(number + 1), 2, stored=lambda n, i=images: i[n], **study)
    found = kit.predict(tmp_path / "s", small_run.path, tmp_path / "p.csv", workers=0)
    assert sorted(found["PatientID"].unique()) == sorted(IDS)
    read = kit.read_table(tmp_path / "p.csv")
    assert read["PatientID"].tolist() == found["PatientID"].tolist()
    np.testing.assert_allclose(read[list(LABELS)], found[list(LABELS)], rtol=1e-5)
    assert read["repaired"].tolist() == found["repaired"].tolist()
    cells = (tmp_path / "p.csv").read_text().replace("\n", ",").split(",")
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@") or cell == "-5"]
    series = kit.read_table(tmp_path / "p.series.csv")
    assert sorted(series["PatientID"]) == sorted(IDS)
    assert (
        read_predictions(tmp_path / "p.csv").table["PatientID"].tolist()
        == read["PatientID"].tolist()
    )


def test_a_thin_series_is_predicted_by_its_slabs(small_run, hospital):
    model = kit.load_model(small_run.path)
    thin = model.predict(hospital / "4", workers=0)  # 12 slices of 1 mm
    assert thin["averaged"].tolist() == [5, 5, 2]
    volume, _ = read_volume(hospital / "4")
    mean = np.stack([volume[start : start + 5].mean(axis=0) for start in (0, 5, 10)])
    expected = model.predict(mean, positions=[0, 5, 10])
    np.testing.assert_allclose(thin[list(LABELS)], expected[list(LABELS)], rtol=1e-5)
    assert model.predict(hospital / "4", slab=0, workers=0)["averaged"].tolist() == [1] * 12
    study = model.predict(hospital / "4", by="study", workers=0)
    assert study["slices"].tolist() == [3]
