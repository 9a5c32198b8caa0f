"""Files and zip members of any form are parsed, or refused with a reason."""

import gzip
import os
import pickle
import subprocess
import sys
import threading
import warnings
import zipfile

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from conftest import ROOT
from dicom_files import AIR, LOSSLESS, encoded, reason_of, reasons, write_slice
from PIL import Image
from pydicom.fileset import FileSet

from kit.dicom.header import PixelError, read_header
from kit.dicom.parsing import UnreadableError, read_leniently
from kit.dicom.pixels import read_hounsfield
from kit.slices import index_slices


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a DICOM file"),
        (b"ID,Label\nID_0_any,1\n" * 40, "not a DICOM file"),
        (b"\x08\x00" + bytes(500), "not a DICOM file"),
        (bytes(128) + b"DICM", "file is cut short, or holds no image"),
    ],
)
def test_other_files_are_named_as_what_they_are(tmp_path, content, reason):
    path = tmp_path / "a file"
    path.write_bytes(content)
    assert reason_of(path) == reason


def test_a_file_that_is_not_there_or_is_no_file_gives_its_reason(tmp_path):
    assert reason_of(tmp_path / "none.dcm", UnreadableError) == "No such file or directory"
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    assert "not a regular file" in reason_of(tmp_path / "pipe", UnreadableError)
    assert "not a regular file" in reason_of(tmp_path, UnreadableError)


def test_a_deflated_file_that_inflates_without_end_is_refused(tmp_path, monkeypatch):
    path = encoded(LOSSLESS["deflated"])
    monkeypatch.setattr("kit.dicom.parsing.MAX_SLICE_BYTES", 500_000)
    assert path.stat().st_size < 500_000 < len(pydicom.dcmread(path).PixelData)
    assert "inflates to more than any CT slice" in reason_of(path, UnreadableError)


def test_a_member_of_a_zip_is_read_in_place_and_a_bomb_is_not(tmp_path, monkeypatch):
    stored = np.arange(64, dtype=np.int16).reshape(8, 8)
    path = write_slice(tmp_path / "a.dcm", stored)
    with zipfile.ZipFile(tmp_path / "A.ZIP", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "in/a.dcm")
        archive.writestr("bomb.dcm", path.read_bytes() + bytes(3_000_000))
    np.testing.assert_array_equal(read_hounsfield(tmp_path / "A.ZIP/in/a.dcm"), stored)
    assert "no such member" in reason_of(tmp_path / "A.ZIP/b.dcm", UnreadableError)
    monkeypatch.setattr("kit.files.MAX_MEMBER_BYTES", 2_000_000)
    assert reason_of(tmp_path / "A.ZIP/bomb.dcm").endswith("any file of a head CT: 3 MB")
    np.testing.assert_array_equal(read_hounsfield(tmp_path / "A.ZIP/in/a.dcm"), stored)


def test_damage_behind_the_header_of_a_zips_member_does_not_cost_the_header(tmp_path):
    path = write_slice(tmp_path / "a.dcm", np.arange(4096, dtype=np.int16).reshape(64, 64))
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as stored:
        stored.write(path, "a.dcm")
    content = bytearray(archive.read_bytes())
    content[content.index(path.read_bytes()[-64:])] ^= 1
    archive.write_bytes(content)
    assert read_header(archive / "a.dcm").values == read_header(path).values
    assert "zip member is damaged: Bad CRC-32" in reason_of(archive / "a.dcm", UnreadableError)


def test_errors_pass_between_processes_with_their_reason():
    error = pickle.loads(pickle.dumps(PixelError("a.dcm", "cut short", "2 of 3")))  # noqa: S301
    assert isinstance(error, PixelError)
    assert (error.path, error.code, error.detail) == ("a.dcm", "cut short", "2 of 3")
    assert (error.reason, str(error)) == ("cut short: 2 of 3", "a.dcm: cut short: 2 of 3")


STATE = """
import os, sys, warnings
import albumentations, cv2, joblib, numpy, pandas, pyarrow.compute, pydicom, torch, tqdm
torch.set_num_threads(2)

def take_state():
    settings = pydicom.config.settings
    modes = settings.reading_validation_mode, settings.writing_validation_mode
    return modes, list(warnings.filters), torch.get_num_threads(), dict(os.environ)

before = take_state()
import kit.dicom, kit.files, kit.images, kit.processes, kit.slices, kit.windowing
from kit.slices import competition_files, entries, folds, index, order, selection
assert take_state() == before, "by import"
folder, broken = sys.argv[1:]
for workers in (1, 2):
    slices, skipped = kit.slices.index_slices(folder, workers)
    assert len(slices) > 256 and len(skipped)
kit.images.make_augmentation()
dataset = kit.images.SliceDataset(slices, kit.windowing.InputConfig(image_size=32), augment=True)
assert len(list(kit.images.load_batches(dataset, numpy.split(numpy.arange(3), [2]), 0))) == 2
try:
    kit.dicom.read_hounsfield(broken)
    raise AssertionError
except kit.dicom.DicomError:
    pass
kit.processes.count_cores()
assert take_state() == before, "by a call"
"""


def test_importing_and_calling_leaves_the_process_as_it_was(small_data, tmp_path):
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no")
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "data").symlink_to(small_data / "stage_2_train")
    (folder / "broken.dcm").symlink_to(broken)
    done = subprocess.run(
        [sys.executable, "-c", STATE, str(folder), str(broken)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_the_last_of_several_threads_restores_what_the_first_set():
    def take_state():
        return list(warnings.filters), pydicom.config.settings.reading_validation_mode

    before, inside, leave = take_state(), threading.Event(), threading.Event()

    def read():
        with read_leniently():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=read)
    with read_leniently():
        thread.start()
        assert inside.wait(10)
    assert take_state()[1] == pydicom.config.IGNORE  # the other still reads
    leave.set()
    thread.join()
    assert take_state() == before


def test_uids_as_the_competitions_are_read_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_slice(tmp_path / "a.dcm", SOPInstanceUID="ID_0123456789")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_header(path).values["SOPInstanceUID"] == "ID_0123456789"
        assert read_hounsfield(path).shape == (8, 8)


@pytest.mark.parametrize(
    ("start", "form"),
    [
        (b"PK\x03\x04", "a zip archive; unpack it first"),
        (b"\x1f\x8b\x08", "packed by gzip; unpack it first"),
        (bytes(257) + b"ustar", "a tar archive; unpack it first"),
        (b"\x89PNG\r\n", "a PNG image"),
        (b"\xff\xd8\xff\xe0", "a JPEG image"),
        (b"%PDF-1.4", "a PDF document"),
        (b"MM\0*", "a TIFF image"),
        (bytes(344) + b"n+1\0", "a NIfTI image whose name does not end in .nii"),
    ],
)
def test_what_is_no_dicom_is_named(tmp_path, start, form):
    path = tmp_path / "a"
    path.write_bytes(start + bytes(1000))
    assert reason_of(path, UnreadableError) == f"not a DICOM file: {form}"


def test_what_lies_among_the_scans_of_a_hospital_is_named(tmp_path):
    ct = write_slice(tmp_path / "ct.dcm", AIR)
    write_slice(tmp_path / "mr.dcm", AIR, Modality="MR", SOPClassUID=pydicom.uid.MRImageStorage)
    (tmp_path / "ct.dcm.gz").write_bytes(gzip.compress(ct.read_bytes()))
    for name in ("full.zip", "empty.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            if name == "full.zip":
                archive.write(ct, "ct.dcm")
    for name in ("key.png", "key.jpg", "key.dcm"):
        Image.new("L", (8, 8)).save(tmp_path / name, "JPEG" if name == "key.jpg" else "PNG")
    nibabel.save(nibabel.Nifti1Pair(np.zeros((2, 2, 2), np.int16), np.eye(4)), tmp_path / "a.img")
    (tmp_path / "b.img").write_bytes(bytes(8))
    for name in ("key.tif", "key.bmp"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    SimpleITK.WriteImage(SimpleITK.Image(2, 2, 2, SimpleITK.sitkInt16), str(tmp_path / "a.nrrd"))
    files, slice_ = FileSet(), pydicom.dcmread(ct)
    slice_.update({"StudyDate": "20200101", "StudyTime": "10", "StudyID": "1"})
    slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = "1.2.9"
    slice_.SeriesNumber = slice_.InstanceNumber = 1
    slice_.PatientName = slice_.AccessionNumber = ""
    files.add(slice_)
    files.write(tmp_path / "disc")
    slices, skipped = index_slices(tmp_path, 1)
    assert [path for path in slices["path"] if "disc" not in path] == [str(ct)]
    assert reasons(skipped) == {
        "mr.dcm": "not a CT image: Modality is MR (MR Image Storage)",
        "ct.dcm.gz": "not a DICOM file: packed by gzip; unpack it first",
        "full.zip": "not a DICOM file: a zip archive; unpack it first",
        "empty.zip": "not a DICOM file: an empty zip archive",
        "key.png": "not a DICOM file: a PNG image",
        "key.dcm": "not a DICOM file: a PNG image",
        "key.jpg": "not a DICOM file: a JPEG image",
        "a.hdr": "not a DICOM file: the header of a NIfTI pair; write it as one .nii file",
        "a.img": "not a DICOM file: the values of a NIfTI pair; write it as one .nii file",
        "b.img": "not a DICOM file",
        "key.tif": "not a DICOM file: a TIFF image",
        "key.bmp": "not a DICOM file: a BMP image",
        "a.nrrd": "not a DICOM file: an NRRD image; write it as .nii",
        "DICOMDIR": "a DICOMDIR, which lists files and holds no image",
    }


def test_a_text_that_begins_as_a_bitmap_does_is_none(tmp_path):
    (tmp_path / "a").write_text("BMI,age\n20,40\n" * 99)
    assert reason_of(tmp_path / "a", UnreadableError) == "not a DICOM file"


def test_a_dicomdir_is_named(tmp_path):
    path = tmp_path / "DICOMDIR"
    directory = pydicom.Dataset()
    directory.FileSetID = "A"
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    directory.save_as(path, enforce_file_format=True)
    assert reason_of(path) == "a DICOMDIR, which lists files and holds no image"
