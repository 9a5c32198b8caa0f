"""The reference implementation of the benchmarks gives the kit's results. Nothing is timed here."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, golden, shared

sys.path.insert(0, str(ROOT / "benchmarks"))

import ablation
import ablation_tables
import bench
import gpu
import gpu_bench
import gpu_images
import gpu_series
import limits
import published
import rows
import samples
import study

from kit.competition import LABELS, weighted_log_loss
from kit.recipes import find_recipe


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


@pytest.mark.parametrize(
    "case", ["signed16", "unsigned12", "padded", "no_air", "zoomed_bone", "constant", "slope"]
)
def test_the_published_windows_are_the_golden_ones(case):
    values = golden("windowing")
    hounsfield = values[f"{case}.pixels"] * values[f"{case}.slope"] + values[f"{case}.intercept"]
    np.testing.assert_array_equal(published.window_image(hounsfield), values[f"{case}.expected"])


@pytest.mark.parametrize("case", ["tall", "wide", "touching", "small"])
def test_the_published_crop_is_the_golden_one(case):
    values = golden("crop")
    cropped = published.crop_to_head(values[f"{case}.image"])
    np.testing.assert_array_equal(cropped, values[f"{case}.expected"])


def test_the_published_loader_gives_the_golden_batch():
    values = golden("sequences")
    table = pd.DataFrame({name: values[name] for name in ("series", "seq")})
    table[published.LABELS] = values["labels"]
    table["embidx"] = np.arange(len(table))
    dataset = published.SeriesDataset(values["embeddings"], table)
    numbers = [list(dataset.names).index(name) for name in values["series_order"]]
    for place, number in enumerate(numbers):
        np.testing.assert_allclose(dataset[number]["emb"], values[f"item{place}.emb"], rtol=1e-6)
    batch = published.load_batch(dataset, numbers, "cpu")
    for name in ("emb", "mask", "embidx", "labels"):
        np.testing.assert_allclose(batch[name], values[f"batch.{name}"], rtol=1e-6)


def test_the_published_model_gives_the_golden_logits_and_losses():
    values = golden("lstm")
    model = published.make_lstm(16, 16)
    prefix = "weights."
    weights = {k[len(prefix) :]: values[k] for k in values.files if k.startswith(prefix)}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    inputs, real = torch.from_numpy(values["input"]), torch.from_numpy(values["mask"]).bool()
    with torch.no_grad():
        found = model(inputs)[real]
    expected = torch.from_numpy(values["logits_left_padded"])[real]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    rate, decay = float(values["train.lr"]), float(values["train.gamma"])
    optimizer = published.make_optimizer(model, rate, float(values["train.weight_decay"]))
    labels, losses = torch.from_numpy(values["labels"]).float(), []
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = rate * decay**epoch
        for row, mask in enumerate(real):
            batch = {"emb": inputs[row, mask][None], "labels": labels[row, mask][None]}
            batch["mask"] = torch.ones(1, int(mask.sum()))
            losses.append(published.train_step(model, optimizer, batch))
    np.testing.assert_allclose(losses, values["train.losses"], rtol=1e-4)


def test_the_published_bag_gives_the_golden_submission(tmp_path):
    values = golden("submission")
    paths = []
    for number, predictions in enumerate(values["predictions"]):
        wide = pd.DataFrame(predictions, index=values["images"], columns=published.LABELS)
        long = wide.stack()
        ids = ["_".join(pair) for pair in long.index]
        paths.append(tmp_path / f"{number}.csv")
        pd.DataFrame({"ID": ids, "Label": long.to_numpy()}).to_csv(paths[-1], index=False)
    bagged = published.bag_submissions(paths)
    expected = pd.Series(values["Label"], index=values["ID"])
    np.testing.assert_allclose(bagged.loc[expected.index], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["slices", "batch", "deltas", "submission", "bag"])
def test_a_row_gives_equal_results_on_small_inputs(scratch, name):
    maker, _, quick = bench.ROWS[name]
    maker(scratch, quick).check()


def test_the_lstm_rows_give_equal_results_on_small_inputs(scratch):
    rows.make_lstm_prediction(scratch, 8, hidden=32).check()
    rows.make_lstm_step(scratch, 2, hidden=32).check()


def test_the_index_row_gives_equal_tables(scratch):
    rows.make_index(scratch, 60).check()


def test_real_slices_look_the_same_in_the_reference():
    from kit.dicom.pixels import read_hounsfield
    from kit.images import read_image
    from kit.windowing import InputConfig, window_image

    for path in sorted(shared("data/dcm_qa_ct/GE").glob("*.dcm"))[::9]:
        image = window_image(read_hounsfield(path))
        np.testing.assert_array_equal(image, published.window_file(path))
        expected = published.read_image(path, 480)
        np.testing.assert_array_equal(read_image(path, InputConfig()), expected)


def test_the_embeddings_of_three_views_are_the_published_ones(small_data):
    from kit.classifier import Classifier, ClassifierConfig
    from kit.images import read_image
    from kit.recipes import SMALL_RESNEXT

    torch.manual_seed(0)
    options = {"architecture": "resnext50_32x4d", "architecture_options": SMALL_RESNEXT}
    model = Classifier(ClassifierConfig(image_size=64, **options)).eval()
    paths = [str(path) for path in sorted(small_data.rglob("stage_2_test/*.dcm"))[:3]]
    with torch.no_grad():
        expected = model.embed_views(
            torch.from_numpy(np.stack([read_image(path, model.config) for path in paths]))
        )
    found = published.extract_embeddings(model.backbone, paths, 64, "cpu", workers=0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_misses_its_target_is_bold():
    row = rows.Row("work", print, print, print, faster=3, above_floor=1.5, memory=1.0)
    times = {"kit": (1.0, 1.0), "published": (2.0, 4.0), "floor": (0.8, 0.5)}
    line = bench.format_row(row, times, {"peak": 2e9})
    assert line == (
        "| work | 1 s | 2 s | 800 ms | **2.00 (4.00)**, ≥ 3 | 1.25 (2.00), ≤ 1.5 "
        "| **2.00 GB**, < 1 |"
    )


def test_memory_is_counted_beyond_the_model():
    row = rows.Row("work", print, memory=1.0, model=1.5)
    line = bench.format_row(row, {"kit": (1.0, 1.0)}, {"peak": 2e9})
    assert line.endswith("| 0.50 GB, < 1 |")


def test_memory_is_measured_in_a_process_of_its_own(scratch):
    peak = bench.call_alone(bench.measure_memory, rows.make_slices, scratch, 2000)
    assert 20e6 < peak["before"] <= peak["peak"] < 2e9


def test_each_form_is_timed_in_a_process_of_its_own(scratch):
    row, times = bench.time_forms(rows.make_submission, scratch, 600, rounds=1)
    assert row.work == "writing and validating 600 rows"
    assert set(times) == {"kit", "published", "floor"}
    assert all(wall > 0 for wall, _ in times.values())


def test_the_limits_rows_run_on_small_inputs(scratch):
    for maker in (limits.make_training_memory, limits.make_index_memory, limits.make_opening):
        maker(scratch, 300).kit()
    row = limits.make_step_memory(scratch, 300, hidden=16)
    row.kit()
    # lstm1 2·(64·(6144+16) + 2·64), lstm2 2·(64·(32+16) + 2·64), linear1 and 2, linear, skip
    weights = 788_736 + 6400 + 2 * (32 * 32 + 32) + (32 * 6 + 6) + 4096 * 32
    assert row.model == 4 * 4 * weights / 1e9


def test_the_headers_written_are_slices_of_full_size(scratch):
    from kit.dicom.header import read_header
    from kit.dicom.pixels import check_pixel_bytes

    path = next(samples.write_headers(scratch, 60).iterdir())
    assert check_pixel_bytes(read_header(path)) is None
    assert read_header(path).pixel_bytes == 512 * 512 * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
def test_without_a_gpu_the_script_says_so():
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("No GPU is at hand")


def test_the_gpu_script_counts_operations():
    # Of the published model: lstm1 2·2·8192·8192, lstm2 2·2·8192·6144, linear1 and 2, linear
    expected = 268_435_456 + 201_326_592 + 2 * 2 * 4096**2 + 2 * 4096 * 6
    assert gpu_series.count_sequence_operations(2048, 2048) == expected
    bench_ = gpu_bench.Bench(torch.device("cpu"), None, architecture="resnet18")
    # resnet18: 1.81 GMAC at 224 px (He et al., 2015), twice that in operations, and the head
    operations = gpu_images.count_operations(gpu_images.make_classifier(bench_, 224))
    assert operations == pytest.approx(3.63e9, rel=0.01)


@pytest.fixture
def small_files(small_data, monkeypatch):
    """The phantom's small files in place of drawn ones of full size."""
    paths = sorted(str(path) for path in small_data.rglob("*.dcm"))
    monkeypatch.setattr(samples, "write_slices", lambda _, count: paths[:count])


def test_the_gpu_script_measures_on_a_cpu_too_past_a_row_that_fails(
    small_files, tmp_path, monkeypatch, capsys
):
    def fail(_):
        raise RuntimeError("too little | of everything\nin detail")

    monkeypatch.setattr(gpu, "measure_reading", fail)
    gpu.main(["--quick", "--out", str(tmp_path / "table.md"), "--commit", "abc"])
    text = (tmp_path / "table.md").read_text()
    assert ", commit abc\n" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    works = {cells[0].removeprefix("| "): cells[1] for cells in rows}
    assert works.pop("reading files") == "failed: RuntimeError: too little / of everything"
    for work, unit in (
        ("matrix product", "TFLOPS"),
        ("extraction from files, 32 px, three views", "views/s"),
        ("training on the device, 32 px", "images/s"),
        ("training from files, 32 px", "images/s"),
        ("training within 15 GB, 24 px", "images/s"),
        ("forward pass, 24 px", "views/s"),
        ("LSTM 16", "series/s"),
        ("LSTM, reference implementation", "series/s"),
    ):
        assert works[work].endswith(f" {unit}"), works[work]
        assert float(works[work].split()[0]) >= 0
    assert not [said for said in works.values() if "failed" in said]
    assert (
        "hours of the recipe `single` are unknown without: training on" in capsys.readouterr().out
    )


def test_the_gpu_script_begins_no_row_after_its_time(tmp_path):
    gpu.main(["--quick", "--out", str(tmp_path / "table.md"), "--minutes", "0"])
    text = (tmp_path / "table.md").read_text()
    assert text.count("left out: the time is over") == len(
        gpu.list_rows(gpu_bench.quicken(gpu_bench.Bench(torch.device("cpu"), tmp_path)))
    )


def test_the_gpu_table_takes_its_place_among_the_results(tmp_path, monkeypatch):
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    monkeypatch.setattr(gpu, "PLACE", tmp_path / "RESULTS.md")
    gpu.PLACE.write_text(results)
    gpu.record("the table\n", None)
    written = gpu.PLACE.read_text()
    before, after = results.split(gpu.MARKS[0])[0], results.split(gpu.MARKS[1])[1]
    assert written == f"{before}{gpu.MARKS[0]}\nthe table\n{gpu.MARKS[1]}{after}"


def test_the_hours_of_a_recipe_follow_from_the_rates():
    rates = {
        "training on the device, 480 px": 3 * 752_803 / 3600,
        "training on the device, 240 px": 752_803 / 3600,
        "extraction from files, 480 px, three views": 874_035 / 7200,
        "LSTM 2048": 21_744 / 100,
    }
    lines = {name: gpu_bench.Line(rate, "") for name, rate in rates.items()}
    single = find_recipe("single", {"lstm.epochs": 12, "bag_classifier_epochs": 1})
    hours = gpu.count_hours(single, lines)
    assert hours == pytest.approx({"classifier": 1.0, "embeddings": 2.0, "LSTM": 1 / 3})
    # Four fifths of the images, two models of one epoch; a quarter of the pixels, three views.
    changes = {"train_folds": (0, 1), "classifier.image_size": 240, "classifier.epochs": 1}
    changes |= {"classifier.test_augmentation": True, "lstm.epochs": 12}
    hours = gpu.count_hours(find_recipe("single", changes), lines)
    assert hours == pytest.approx({"classifier": 1.6, "embeddings": 3.0, "LSTM": 8 / 15})
    missing = "training on the device, 64 px; LSTM 64"
    assert gpu.count_hours(find_recipe("demo"), lines) == missing
    said = gpu.summarize(lines).splitlines()
    assert said[0].startswith("The recipe `single` at 480 px on this one card: ")
    missing = "training on the device, 320 px; LSTM 1024"
    assert said[1] == f"The hours of the recipe `tonight` are unknown without: {missing}."


def test_the_studys_table_is_made_by_the_evaluation():
    random = np.random.default_rng(0)
    labels = pd.DataFrame(random.integers(0, 2, (90, 6)), columns=list(LABELS))
    oof = labels.assign(PatientID=np.repeat(np.arange(9), 10), SOPInstanceUID=np.arange(90))
    predictions = {name: random.uniform(0.1, 0.9, (90, 6)) for name in study.ROWS}
    found = study.measure_models(oof, predictions)
    scores = {name: weighted_log_loss(labels, values) for name, values in predictions.items()}
    for name, (loss, change, low, high) in found.items():
        assert loss == pytest.approx(scores[name])
        assert change == pytest.approx(scores[name] / scores["rolling_mean"] - 1, abs=1e-12)
        assert low <= change <= high
    assert found["lstm"][3] - found["lstm"][2] > 0.01
    table = study.format_table({11: {"slices": 90, **found}}, 9, 60.0)
    loss, change, low, high = found["lstm"]
    cell = f"{loss:.4f} ({100 * change:+.1f}; {100 * low:+.1f} to {100 * high:+.1f})"
    assert f"| LSTM | {cell.replace('-', '−')} |" in table


class Made:
    """As much of a phantom of the ablation as its tables need."""

    def __init__(self, directory, seed, rows):
        random = np.random.default_rng(seed)
        self.patients, self.directory = 9, directory / f"seed{seed}"
        self.recipe = find_recipe("demo")
        labels = pd.DataFrame(random.integers(0, 2, (90, 6)), columns=list(LABELS))
        patients = np.repeat(np.arange(9), 10)
        self.slices = labels.assign(PatientID=patients, SOPInstanceUID=np.arange(90))
        self.directory.mkdir()
        for number, name in enumerate(rows):
            values = {"seconds": 10 * number + seed, "parameters": 1_500_000}
            values["p"] = random.uniform(0.1, 0.9, (90, 6))
            np.savez(self.directory / f"{name}.npz", **values)


def test_the_ablations_table_has_each_change_by_seed_and_over_all(tmp_path):
    texts = {"classifier": "classifier alone, 6 epochs", "base": "base", "views": "one view"}
    phantoms = [Made(tmp_path, seed, texts) for seed in (1, 3)]
    losses = [
        {
            name: weighted_log_loss(
                one.slices[list(LABELS)], np.load(one.directory / f"{name}.npz")["p"]
            )
            for name in texts
        }
        for one in phantoms
    ]
    mean = {name: (losses[0][name] + losses[1][name]) / 2 for name in texts}
    table = ablation_tables.format_table(phantoms, texts)
    (line,) = (line for line in table.splitlines() if line.startswith("| one view"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    changes = [100 * (one["views"] / one["base"] - 1) for one in losses]
    assert cells[1] == f"{mean['views']:.4f}"
    assert cells[2:4] == [f"{change:+.1f}".replace("-", "−") for change in changes]
    change, low, high = (float(t.replace("−", "-")) for t in re.findall(r"[+−][\d.]+", cells[4]))
    assert change == pytest.approx(100 * (mean["views"] / mean["base"] - 1), abs=0.05)
    assert low < change < high
    assert cells[5:] == ["22", "1.50"]  # of (21, 23) seconds, and the parameters in millions
    (phantoms[1].directory / "views.npz").rename(tmp_path / "away.npz")
    part = ablation_tables.format_table(phantoms, texts)
    (line,) = (line for line in part.splitlines() if line.startswith("| one view"))
    assert line.split("|")[2:5] == [f" {losses[0]['views']:.4f} ", f" {cells[2]} ", "  "]
    (tmp_path / "away.npz").rename(phantoms[1].directory / "views.npz")
    small = ablation_tables.format_small([phantoms], texts)
    assert f"| one view | {mean['views']:.4f} ({cells[4]}) |" in small
    ablation_tables.draw_changes(phantoms, texts, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_study_replaces_its_own_section_alone(tmp_path):
    path = tmp_path / "STUDY.md"
    study.replace_section(path, "# One\n\nfirst\n")
    study.replace_section(path, "# Two\n\nsecond\n")
    study.replace_section(path, "# One\n\nthird\n")
    assert path.read_text() == "# One\n\nthird\n\n# Two\n\nsecond\n"


def test_each_row_of_the_ablation_is_made_once(tmp_path, monkeypatch):
    """The whole of it, on few patients and epochs."""
    monkeypatch.setattr(ablation, "EPOCHS", {6: (1, 3)})
    monkeypatch.setattr(ablation, "MORE", 1)
    phantom = ablation.Phantom(1, 6, tmp_path)
    phantom.measure(list(ablation.ROWS))
    found = ablation_tables.read_rows(phantom, ablation.ROWS)
    assert found.keys() == ablation.ROWS.keys()
    labels = phantom.slices[list(LABELS)].to_numpy()
    for name, row in found.items():
        assert row["p"].shape == labels.shape, name
        assert np.isfinite(row["p"]).all(), name
    base, soup = (int(found[name]["parameters"]) for name in ("base", "soup"))
    classifier = int(found["classifier"]["parameters"])
    assert base - classifier == 3 * (soup - classifier)  # three LSTMs, and one
    monkeypatch.setitem(ablation.ROWS, "base", ("", None))  # called, it would fail
    phantom.measure(["base"])
