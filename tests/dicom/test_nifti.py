"""NIfTI images: the slices that DICOM has, in its order; what is refused."""

import gzip
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK
from conftest import shared
from dicom_files import write_nifti, write_slice

from kit.dicom import DicomError, read_hounsfield
from kit.dicom.nifti import read_volume
from kit.slices import index_slices

# Columns go to the patient's left, rows to the back, slices to the head; NIfTI's axes to the right,
# the front and the head.
LPS = np.diag([-0.5, -0.5, 5, 1.0])
HEAD = np.random.default_rng(0).integers(-1000, 100, (4, 3, 2)).astype(np.int16)  # x, y, z


def write(path, values=HEAD, affine=LPS, **header):
    image = nibabel.Nifti1Image(values, affine, dtype=values.dtype)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return str(path)


def test_a_real_head_has_the_slices_of_its_dicom_files_in_their_order(tmp_path):
    folder = shared("data/dcm_qa_ct/GE")
    write_nifti(folder, tmp_path / "head.nii.gz")
    expected, _ = index_slices(folder, 1)
    found, skipped = index_slices(tmp_path, 1)
    assert skipped.empty
    assert found["seq"].tolist() == expected["seq"].tolist() == list(range(1, 29))
    for ours, theirs in zip(found["path"], expected["path"], strict=True):
        values = read_hounsfield(ours)
        assert values.dtype == np.int16
        np.testing.assert_array_equal(values, read_hounsfield(theirs))
    np.testing.assert_allclose(
        read_volume(tmp_path / "head.nii.gz").orientation,
        [float(number) for number in expected["ImageOrientationPatient"][0].split("\\")],
        atol=1e-5,
    )
    first = [float(number) for number in expected["ImagePositionPatient"][0].split("\\")]
    np.testing.assert_allclose(read_volume(tmp_path / "head.nii.gz").positions[0], first, atol=1e-3)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_however_the_axes_are_stored_the_slices_are_turned_to_the_patient(flips, order, tmp_path):
    values, affine = HEAD, LPS.copy()
    for axis, flip in enumerate(flips):
        if flip < 0:
            values = np.flip(values, axis)
            affine[:3, 3] += affine[:3, axis] * (HEAD.shape[axis] - 1)
            affine[:3, axis] *= -1
    affine[:, :3] = affine[:, list(order)]
    volume = read_volume(write(tmp_path / "a.nii", values.transpose(order), affine))
    np.testing.assert_array_equal(volume.values, HEAD.transpose(2, 1, 0))
    np.testing.assert_allclose(volume.orientation, [1, 0, 0, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(volume.positions, [[0, 0, 0], [0, 0, 5]], atol=1e-6)
    assert volume.spacing == (0.5, 0.5)


def test_values_are_scaled_and_kept_whole_where_they_are(tmp_path):
    scaled = write(tmp_path / "a.nii", HEAD, scl_slope=0.5, scl_inter=-700)
    image = nibabel.load(scaled)
    assert read_volume(scaled).values.dtype == np.float32
    np.testing.assert_allclose(read_volume(scaled).values.transpose(2, 1, 0), image.get_fdata())
    whole = read_volume(write(tmp_path / "b.nii.gz", HEAD.astype(np.float64)[..., None]))
    assert (whole.values.dtype, whole.values.shape) == (np.int16, (2, 3, 4))


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 3])


def flatten(path):
    content = bytearray(path.read_bytes())
    content[296:312] = bytes(16)  # srow_y
    path.write_bytes(content)


REFUSED = {
    "none is below -200, as air is": lambda p: write(p / "a.nii", HEAD + 1000),
    "they go from -1000 to 40000": lambda p: write(p / "a.nii", np.where(HEAD > 0, 40000, -1000)),
    "some are not finite": lambda p: write(p / "a.nii", np.where(HEAD > 0, np.nan, -1000.0)),
    "not one volume: its shape is (4, 3, 2, 2)": lambda p: write(
        p / "a.nii", np.stack([HEAD, HEAD], -1)
    ),
    "not one volume: its shape is (4, 3)": lambda p: write(p / "a.nii", HEAD[..., 0]),
    "plane is not axial: its pixels would be 0.50 x 5.00 mm": lambda p: write(
        p / "a.nii", affine=np.diag([-0.5, -5, 0.5, 1])
    ),
    "not a NIfTI image": lambda p: (p / "a.nii").write_bytes(b"x" * 400),
    "not a NIfTI image: Binary block is wrong size": lambda p: (p / "a.nii").write_bytes(b"x"),
    "its axes are not those of a scan": lambda p: flatten(
        p / write(p / "a.nii")[len(str(p)) + 1 :]
    ),
    "file is cut short": lambda p: cut(p / write(p / "a.nii")[len(str(p)) + 1 :]),
    "its gzip is cut short": lambda p: cut(p / write(p / "a.nii.gz")[len(str(p)) + 1 :]),
    "its gzip is damaged": lambda p: (p / "a.nii.gz").write_bytes(b"\x1f\x8b" + b"x" * 400),
    "values are not Hounsfield units: they are complex64": lambda p: write(
        p / "a.nii", HEAD.astype(np.complex64)
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_scan_in_hu_is_listed_with_its_reason(reason, tmp_path):
    REFUSED[reason](tmp_path)
    slices, skipped = index_slices(tmp_path, 1)
    assert slices.empty
    assert len(skipped) == 1
    assert reason in skipped["reason"][0]


def test_a_gzip_of_several_members_is_read_whole(tmp_path):
    whole = write(tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(content[:300]) + gzip.compress(content[300:]))
    np.testing.assert_array_equal(read_volume(packed).values, read_volume(whole).values)


@pytest.mark.parametrize(("units", "scale"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_positions_are_in_mm_whatever_the_unit_as_itk_has_them(units, scale, tmp_path):
    path = write(tmp_path / "a.nii", affine=LPS, xyzt_units=units)
    volume, image = read_volume(path), SimpleITK.ReadImage(path)
    spacing = [*volume.spacing[::-1], volume.positions[1][2]]
    np.testing.assert_allclose(spacing, image.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(spacing, [0.5 * scale, 0.5 * scale, 5 * scale], rtol=1e-6)


@pytest.mark.parametrize("perm", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1)])
@pytest.mark.parametrize("degrees", [(0, 20), (1, -15), (2, 30)])
def test_each_voxel_of_an_oblique_image_lies_where_itk_has_it(perm, degrees, tmp_path):
    axis, angle = degrees[0], np.deg2rad(degrees[1])
    turn, (first, second) = np.eye(4), [number for number in range(3) if number != axis]
    turn[[first, second], [first, second]] = np.cos(angle)
    turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
    affine = turn @ LPS
    affine[:3, 3] = 10, -20, 30
    affine[:, :3] = affine[:, list(perm)]
    path = write(tmp_path / "a.nii", HEAD.transpose(perm), affine)
    volume, image = read_volume(path), SimpleITK.ReadImage(path)
    for place in np.ndindex(*volume.values.shape):
        number, row, column = place
        point = volume.positions[number] + volume.orientation.reshape(2, 3).T @ (
            column * volume.spacing[1],
            row * volume.spacing[0],
        )
        assert image[image.TransformPhysicalPointToIndex(point.tolist())] == volume.values[place]


def test_a_file_that_claims_to_be_huge_is_refused_without_the_memory(tmp_path):
    path = tmp_path / "a.nii"
    write(path)
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([32767] * 3, "<i2").tobytes()  # dim[1] to dim[3]
    path.write_bytes(content)
    with pytest.raises(DicomError, match="file is cut short"):
        read_volume(path)
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(bytes(1 << 20))[:-1])
    with pytest.raises(DicomError, match="its gzip is cut short"):
        read_volume(packed)


def test_a_slice_that_is_not_there_and_a_file_that_is_gone_are_named(tmp_path):
    path = write(tmp_path / "a.nii")
    with pytest.raises(DicomError, match=r"a\.nii/3: no such slice in the NIfTI image: it has 2"):
        read_hounsfield(f"{path}/3")
    (tmp_path / "a.nii").unlink()
    with pytest.raises(DicomError, match=r"a\.nii: No such file"):
        read_hounsfield(f"{path}/1")


def test_an_image_is_a_series_of_a_patient_of_its_files_name(tmp_path):
    for name in ("049.nii", "p1/ct.nii.gz", "p2/ct.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name)
    write_slice(tmp_path / "1.dcm", np.full((8, 8), -1000, np.int16))
    slices, _ = index_slices(tmp_path, 1)
    assert slices["PatientID"].unique().tolist() == ["049", "P1", "p1-ct", "p2-ct"]
    assert slices["SOPInstanceUID"].tolist()[:2] == ["049:1", "049:2"]
    assert slices["path"].tolist()[0] == f"{tmp_path}/049.nii/1"
    assert slices["note"].isna().all()


def test_no_two_images_have_one_name(tmp_path):
    for name in ("a-b.nii", "a/b.nii", "c/b.nii", "d/e.nii", "d/e.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, HEAD[..., : 1 + name.endswith("gz")])
    slices, skipped = index_slices(tmp_path, 1)
    assert skipped.empty
    assert slices["path"].str.rsplit("/", n=1).str[0].nunique() == 5
    assert sorted(slices["PatientID"].value_counts()) == [1, 1, 1, 1, 2]
    assert {"a-b", "c-b", "e.nii", "e.nii.gz"} < set(slices["PatientID"])


def test_a_dicom_file_of_a_folder_that_is_called_as_an_image_is_read(tmp_path):
    path = write_slice(tmp_path / "scan.nii" / "1", np.full((8, 8), -1000, np.int16))
    assert (read_hounsfield(path) == -1000).all()


def test_an_image_that_does_not_state_how_the_patient_lies_is_noted(tmp_path):
    path = tmp_path / "a.nii"
    write(path)
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # qform_code and sform_code
    path.write_bytes(content)
    slices, _ = index_slices(tmp_path, 1)
    assert set(slices["note"]) == {"its NIfTI image does not state how the patient lies"}


def test_without_nibabel_it_is_said_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "a.nii")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    _, skipped = index_slices(tmp_path, 1)
    reason = "nibabel, which reads NIfTI, is not installed: pip install nibabel"
    assert skipped["reason"].tolist() == [reason]
