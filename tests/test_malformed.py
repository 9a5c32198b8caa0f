"""Broken files: each read or listed with its reason, within ten seconds and two gigabytes."""

import contextlib
import json
import os
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import ROOT, shared
from dicom_files import write_slice
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.dicom import DicomError, read_hounsfield
from kit.phantom import write_phantom
from kit.slices import index_files, index_slices

# Reads the files named on standard input, as the pipeline does: the header for the table, then
# the pixels. An exception, a file that takes ten seconds or memory beyond 2 GB ends it.
READER = """
import json, resource, signal, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from kit import progress
from kit.dicom import DicomError, read_hounsfield
from kit.slices import index_files
progress.quiet = True
found = {}
for path in json.load(sys.stdin):
    print(path, end="\\r", file=sys.stderr)
    signal.alarm(10)
    slices, skipped = index_files([path], "here", workers=1)
    listed = skipped["reason"].iloc[0] if len(skipped) else None
    assert len(slices) + len(skipped) == 1
    try:
        pixels = read_hounsfield(path)
        read = None
    except DicomError as error:
        read = error.reason
    found[path] = [listed, read]
signal.alarm(0)
json.dump([found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss], sys.stdout)
"""


def read_bounded(paths) -> dict[str, tuple[str | None, str | None]]:
    """For each path: why the table leaves it out, and why its pixels are not read; None if not."""
    paths = [str(path) for path in paths]
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(paths), capture_output=True, text=True, cwd=ROOT, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"stopped by {done.returncode}: {done.stderr[-3000:]}"
    found, kilobytes = json.loads(done.stdout)
    assert kilobytes < 2 << 20
    for reasons in found.values():
        for reason in filter(None, reasons):
            assert reason.isprintable()
            assert len(reason) < 400
    assert list(found) == paths
    return found


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Files of a phantom, one of each encoding."""
    directory = tmp_path_factory.mktemp("malformed") / "phantom"
    write_phantom(directory, patients=6, size=32, seed=11, workers=1)
    slices, _ = index_slices(directory, 1)
    firsts = slices.drop_duplicates("PatientID")["path"]
    syntaxes = {pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in firsts}
    assert len(syntaxes) == 2
    return [open(path, "rb").read() for path in firsts]


def find_boundaries(content: bytes, path) -> list[int]:
    """Where each element's tag, value and end are."""
    path.write_bytes(content)
    dataset = pydicom.dcmread(path)
    places = {0, 128, 132}
    for part in (dataset.file_meta, dataset):
        for tag in list(part.keys()):
            element = part.get_item(tag)
            start = element.value_tell if hasattr(element, "value_tell") else element.file_tell
            places |= {start - 12, start - 8, start - 4, start, start + (element.length or 0)
                       if hasattr(element, "length") else start}  # fmt: skip
    return sorted(place for place in places if 0 <= place < len(content))


def test_malformed_files_beside_a_good_series_leave_it_untouched(tmp_path):
    good, malformed = shared("data/dcm_qa_ct/GE"), shared("data/malformed")
    (tmp_path / "good").symlink_to(good)
    (tmp_path / "malformed").symlink_to(malformed)
    slices, skipped = index_slices(tmp_path, 1)
    files = sorted(os.listdir(malformed))
    assert len(files) == 275
    is_good = slices["path"].str.contains("/good/")
    listed = [*slices.loc[~is_good, "path"], *skipped["path"]]
    assert sorted(map(os.path.basename, listed)) == files
    assert skipped["reason"].str.len().gt(5).all()
    alone, _ = index_slices(good, 1)
    pd.testing.assert_frame_equal(
        slices[is_good].drop(columns="path").reset_index(drop=True), alone.drop(columns="path")
    )


def test_every_malformed_file_is_read_or_has_a_reason_in_bounds():
    files = sorted(shared("data/malformed").iterdir())
    found = read_bounded(files)
    # None of them says how its values become Hounsfield units.
    assert all(listed and read for listed, read in found.values())


def test_malformed_files_that_would_be_believed_are_decoded_in_bounds(tmp_path):
    """The same files told to be Hounsfield units, so that their pixels are decoded too."""
    rescale = b"".join(
        tag + b"DS\x02\x00" + value
        for tag, value in ((b"\x28\x00\x52\x10", b"0 "), (b"\x28\x00\x53\x10", b"1 "))
    )
    pixels = b"\xe0\x7f\x10\x00"
    for file in sorted(shared("data/malformed").iterdir()):
        content = file.read_bytes().replace(pixels, rescale + pixels, 1)
        (tmp_path / file.name).write_bytes(content)
    found = read_bounded(sorted(tmp_path.iterdir()))
    kinds = {(listed is None, read is None) for listed, read in found.values()}
    assert kinds >= {(True, True), (False, False)}
    assert found[str(tmp_path / "BASELINE_valid_ct.dcm")] == [None, None]
    assert sum(read is None for _, read in found.values()) > 100
    unnamed = {
        os.path.basename(path) for path, (listed, read) in found.items() if listed and not read
    }
    assert unnamed == {"TC0861_missing_sop_instance.dcm", "TC0865_missing_series_uid.dcm"}


def truncate_everywhere(content: bytes, folder, step: int):
    places = {*range(0, len(content), step), *find_boundaries(content, folder / "whole.dcm")}
    paths = []
    for place in sorted(places):
        paths.append(folder / f"{place}.dcm")
        paths[-1].write_bytes(content[:place])
    found = read_bounded(paths)
    # The table knows it already: not one file that lost a byte is believed to be whole.
    assert all(listed and read for listed, read in found.values())


def test_a_file_cut_at_any_place_is_listed(phantom, tmp_path):
    for number, content in enumerate(phantom[:2]):
        (tmp_path / str(number)).mkdir()
        truncate_everywhere(content, tmp_path / str(number), 97)


@pytest.mark.slow
def test_a_file_cut_at_every_single_byte_is_listed(phantom, tmp_path):
    truncate_everywhere(phantom[0], tmp_path, 1)


def flip_bits(contents: list[bytes], folder, count: int, first: int = 0) -> dict:
    """Flip a bit at a random place at or after `first` in each of `count` files, and read them."""
    rng, paths = random.Random(20191113), []
    for number in range(count):
        content = bytearray(contents[number % len(contents)])
        content[rng.randrange(first, len(content))] ^= 1 << rng.randrange(8)
        paths.append(folder / f"{number}.dcm")
        paths[-1].write_bytes(content)
    return read_bounded(paths)


def check_header_flips(phantom, folder, count):
    headers = [content[: content.rindex(b"\xe0\x7f\x10\x00") + 12] for content in phantom]
    rest = [content[len(header) :] for content, header in zip(phantom, headers, strict=True)]
    rng, paths = random.Random(7), []
    for number in range(count):
        which = number % len(phantom)
        header = bytearray(headers[which])
        header[rng.randrange(132, len(header))] ^= 1 << rng.randrange(8)
        paths.append(folder / f"{number}.dcm")
        paths[-1].write_bytes(header + rest[which])
    found = read_bounded(paths)
    outcomes = [(listed is None, read is None) for listed, read in found.values()]
    assert outcomes.count((True, True)) > count / 5
    assert outcomes.count((False, False)) > count / 20


def test_flipped_bits_in_the_header_are_read_or_listed(phantom, tmp_path):
    check_header_flips(phantom, tmp_path, 300)


@pytest.mark.slow
def test_two_thousand_flipped_bits_in_the_header_are_read_or_listed(phantom, tmp_path):
    check_header_flips(phantom, tmp_path, 2000)


def test_a_flipped_bit_among_the_pixels_changes_one_pixel(phantom, tmp_path):
    path, rng = tmp_path / "a.dcm", random.Random(3)
    for content in phantom:
        path.write_bytes(content)
        whole = read_hounsfield(path, repair=False).astype(int)
        for _ in range(10):
            flipped = bytearray(content)
            flipped[-1 - rng.randrange(2 * whole.size)] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            assert ((read_hounsfield(path, repair=False) - whole) != 0).sum() <= 1


@pytest.mark.slow
def test_two_thousand_flipped_bits_anywhere_are_read_or_listed(phantom, tmp_path):
    found = flip_bits(phantom, tmp_path, 2000)
    assert sum(read is None for _, read in found.values()) > 1000


ENCODED = [
    "RLELosslessTransferSyntax_1.2.840.10008.1.2.5",
    "JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90",
    "JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80",
    "JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70",
    "DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99",
]


def check_encoded_flips(name, folder, count):
    content = shared(f"data/cornerstone3D/CTImage.dcm_{name}.dcm").read_bytes()
    first = 400 if "Deflated" in name else content.rindex(b"\xe0\x7f\x10\x00")
    found = flip_bits([content], folder, count, first)
    # Where the stream begins, a bit decides most.
    found |= flip_bits([content[: first + 700]], folder, count // 4, first)
    assert any(read for _, read in found.values())


@pytest.mark.parametrize("name", ENCODED)
def test_flipped_bits_in_coded_pixels_are_decoded_or_have_a_reason(name, tmp_path):
    check_encoded_flips(name, tmp_path, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODED)
def test_many_flipped_bits_in_coded_pixels_are_decoded_or_have_a_reason(name, tmp_path):
    check_encoded_flips(name, tmp_path, 1000)


edits = st.lists(
    st.tuples(
        st.integers(0, 1 << 16), st.sampled_from(["set", "cut", "put"]), st.binary(max_size=9)
    ),
    min_size=1,
    max_size=6,
)


@settings(
    max_examples=150, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(which=st.integers(0, 5), edits=edits)
def test_whatever_is_done_to_a_file_it_is_read_or_refused(phantom, tmp_path, which, edits):
    content = bytearray(phantom[which])
    for place, kind, value in edits:
        # Mostly the header: there the meaning is.
        place = place % (len(content) if place % 4 == 0 else min(900, len(content)))
        end = place + (0 if kind == "put" else len(value))
        content[place:end] = b"" if kind == "cut" else value
        content = content or bytearray(b"\0")
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    slices, skipped = index_files([str(path)], "here", 1)
    assert len(slices) + len(skipped) == 1
    with contextlib.suppress(DicomError):
        hounsfield = read_hounsfield(path)
        assert hounsfield.ndim == 2
        assert np.isfinite(hounsfield).all()


def test_a_length_that_lies_takes_no_memory(tmp_path):
    """A value of four gigabytes is declared in a file of a kilobyte."""
    path = write_slice(tmp_path / "a.dcm", PatientName="x" * 40, InstitutionName="Q" * 40)
    content = path.read_bytes()
    place = content.index(b"Q" * 40) - 8
    content = content[: place + 4] + b"UT\0\0\xf0\xff\xff\xff" + content[place + 8 :]
    path.write_bytes(content)
    ((listed, read),) = read_bounded([path]).values()
    assert listed
    assert read


def test_sequences_nested_without_end_are_listed(tmp_path):
    path = write_slice(tmp_path / "a.dcm")
    content = path.read_bytes()
    place = content.index(b"\x28\x00\x02\x00US")
    item = b"\x18\x00\x04\x99SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(content[:place] + item * 50_000 + content[place:])
    ((listed, read),) = read_bounded([path]).values()
    assert listed
    assert read
