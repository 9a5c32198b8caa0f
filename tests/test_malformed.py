"""Broken files: each read or listed with its reason, within ten seconds and two gigabytes."""

import contextlib
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import zlib

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import ROOT, shared
from dicom_files import write_slice
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from kit.dicom import parsing
from kit.dicom.header import read_header
from kit.dicom.parsing import MAX_PIXELS, DicomError
from kit.dicom.pixels import read_hounsfield
from kit.images import read_image
from kit.phantom.write import write_phantom
from kit.slices.index import index_files, index_slices
from kit.windowing import InputConfig

# Reads the files that each line of its input names, as the pipeline does: the header for the table,
# then the image. An exception or a file that takes ten seconds ends it. Of the memory that may be
# asked for, Arrow sets a gigabyte aside unused; what is in use is told, to be below 2 GB.
READER = """
import json, resource, signal, sys
resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))
from kit import progress
from kit.dicom import DicomError
from kit.images import read_image
from kit.slices.index import index_files
from kit.windowing import InputConfig
progress.quiet = True
for line in sys.stdin:
    found = {}
    for path in json.loads(line):
        print(path, end="\\r", file=sys.stderr, flush=True)
        signal.alarm(10)
        slices, skipped = index_files([path], "here", workers=1)
        listed = skipped["reason"].iloc[0] if len(skipped) else None
        assert len(slices) + len(skipped) == 1
        try:
            assert read_image(path, InputConfig(image_size=64)).shape == (64, 64, 3)
            read = None
        except DicomError as error:
            read = error.reason
        found[path] = [listed, read]
    signal.alarm(0)
    # Not by getrusage, which counts the peak of who started this process too.
    memory = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    memory = int(memory.split()[1])
    print(json.dumps([found, memory]), flush=True)
"""


class Reader:
    """A process that runs `READER`, for many calls: its imports take seconds."""

    def __init__(self):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip

    def ask(self, paths: list[str]) -> str:
        self.process.stdin.write(json.dumps(paths) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def say_end(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        return f"stopped by {code}: {self.errors.read()[-3000:]}"


start_reader = functools.lru_cache(Reader)


def read_bounded(paths) -> dict[str, tuple[str | None, str | None]]:
    """For each path: why the table leaves it out, and why it gives no image; None if not."""
    paths = [str(path) for path in paths]
    reader = start_reader()
    answer = reader.ask(paths)
    if not answer:
        start_reader.cache_clear()
        pytest.fail(reader.say_end())
    found, kilobytes = json.loads(answer)
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


def read_outcome(path):
    """The header's text, or the reason why there is none."""
    try:
        return repr(read_header(path))
    except DicomError as error:
        return type(error).__name__, error.reason


def spoil_header(content: bytes, rng: random.Random) -> bytes:
    """Some bytes before the pixels changed, lost, doubled or everything after them cut off."""
    spoiled = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        end = max(140, spoiled.rfind(b"\xe0\x7f\x10\x00"))
        place, size, kind = rng.randrange(128, end), rng.choice((1, 2, 4, 8, 12)), rng.random()
        if kind < 0.5:
            spoiled[place] = rng.choice((0, 1, 2, 8, 16, 65, 90, 255, rng.randrange(256)))
        elif kind < 0.75:
            del spoiled[place : place + size]
        elif kind < 0.95:
            other = rng.randrange(128, end)
            spoiled[place:place] = spoiled[other : other + size]
        else:
            return bytes(spoiled[:place])
        if len(spoiled) < 140:
            break
    return bytes(spoiled)


def compare_ways(paths, monkeypatch) -> int:
    """Assert that each header is the same read the quick way and the careful; how many were quick.

    The careful way is `dcmread`'s over the open file.
    """
    given, parse_start = [], parsing._parse_start

    def note(*arguments):
        given.append(parse_start(*arguments))
        return given[-1]

    for path in paths:
        monkeypatch.setattr(parsing, "_parse_start", note)
        found = read_outcome(path)
        monkeypatch.setattr(parsing, "_parse_start", lambda *_: None)
        assert found == read_outcome(path), path
    monkeypatch.setattr(parsing, "_parse_start", parse_start)
    return sum(parsed is not None for parsed in given)


@pytest.mark.filterwarnings("ignore:VR lookup failed")
def test_a_spoiled_header_is_read_alike_the_quick_and_the_careful_way(
    phantom, tmp_path, monkeypatch
):
    rng, paths = random.Random(20191113), []
    folder = tmp_path / "spoiled"
    implicit = write_slice(tmp_path / "a.dcm", syntax=ImplicitVRLittleEndian).read_bytes()
    for number in range(600):
        content = rng.choice([phantom[0], phantom[1], implicit])
        paths.append(folder / f"{number}.dcm")
        folder.mkdir(exist_ok=True)
        paths[-1].write_bytes(spoil_header(content, rng))
    assert 60 < compare_ways(paths, monkeypatch) < 540


def test_every_file_of_every_scanner_is_read_alike_the_quick_and_the_careful_way(monkeypatch):
    paths = [path for path in sorted(shared("data").rglob("*")) if path.is_file()]
    assert compare_ways(paths, monkeypatch) > 100


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_header_longer_than_is_read_at_once_is_read_the_careful_way(
    syntax, tmp_path, monkeypatch
):
    tags = {"ImageComments": "x" * 9000, "PatientComments": "y" * 9000}
    paths = [write_slice(tmp_path / f"{n}.dcm", syntax=syntax, **tags) for n in range(2)]
    assert compare_ways(paths, monkeypatch) == 0
    assert compare_ways([write_slice(tmp_path / "c.dcm", syntax=syntax)], monkeypatch) == 1


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
        assert read_image(path, InputConfig(image_size=16)).shape == (16, 16, 3)


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


@pytest.mark.parametrize("side", [4096, 4097])
def test_a_small_file_of_a_huge_image_is_read_in_bounds_or_refused(tmp_path, side):
    path = write_slice(tmp_path / "a.dcm", np.zeros((side, side), np.int16), RescaleSlope="0.5")
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    assert path.stat().st_size < 1_000_000
    ((listed, read),) = read_bounded([path]).values()
    too_large = f"image size is not that of a CT slice: {side} x {side} pixels"
    assert listed == read == (None if side * side <= MAX_PIXELS else too_large)


def put_before_patient_id(path, what: bytes):
    content = path.read_bytes()
    place = content.index(b"\x10\x00\x20\x00LO")
    path.write_bytes(content[:place] + what + content[place:])


def deflate(path):
    """Deflate what follows the file meta, as the deflated transfer syntax does."""
    content = path.read_bytes()
    syntax = ExplicitVRLittleEndian.encode() + b"\0"
    length = int.from_bytes(content[140:144], "little")  # of the file meta, by its first element
    head = content[: 144 + length].replace(
        bytes([len(syntax), 0]) + syntax, b"\x16\0" + DeflatedExplicitVRLittleEndian.encode()
    )
    head = head[:140] + (len(head) - 144).to_bytes(4, "little") + head[144:]
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    path.write_bytes(head + packer.compress(content[144 + length :]) + packer.flush())


@pytest.mark.parametrize("deflated", [False, True])
def test_millions_of_empty_elements_are_listed_in_bounds(tmp_path, deflated):
    few, many = (write_slice(tmp_path / f"{name}.dcm") for name in ("few", "many"))
    for path, count in ((few, 1000), (many, 8_000_000)):
        put_before_patient_id(path, b"\x09\x00\x01\x10SH\0\0" * count)
        if deflated:
            deflate(path)
    found = read_bounded([few, many])
    assert found[str(few)] == [None, None]
    for reason in found[str(many)]:
        assert "it is larger than any CT slice's" in reason


def test_a_value_of_gigabytes_that_are_there_takes_no_memory(tmp_path):
    path = write_slice(tmp_path / "a.dcm", syntax=ImplicitVRLittleEndian)
    content = path.read_bytes()
    place = content.index(b"\x10\x00\x20\x00\x02\0\0\0") + 4
    path.write_bytes(content[:place] + (3 << 30).to_bytes(4, "little"))
    os.truncate(path, (3 << 30) + place + 4)  # sparse: it takes no space
    ((listed, read),) = read_bounded([path]).values()
    assert "it is larger than any CT slice's" in listed
    assert read == "larger than any CT slice: 3221 MB"
