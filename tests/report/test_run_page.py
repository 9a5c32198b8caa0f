import base64
import hashlib
import html
import json
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from conftest import shared

import kit
from kit.classifier import Classifier, ClassifierConfig
from kit.cli.commands import main
from kit.competition import LABELS
from kit.ensemble import MODELS, name_columns
from kit.lstm import LSTMConfig, SequenceLSTM
from kit.recipes import SMALL_RESNEXT
from kit.report import page
from kit.report.explain import explain_series, measure_influence
from kit.report.gradcam import compute_gradcam, find_map_layer, scale_maps
from kit.report.page import draw_series, render_page
from kit.report.run_page import (
    find_commit,
    find_series,
    read_series,
    show_series,
    write_report,
    write_scan_report,
)
from kit.runs.directory import Run
from kit.runs.prediction import predict_folder
from kit.runs.scans import count_reasons, measure_thickness, summarize_series, write_manifest

HEAD = "data/dcm_qa_ct/GE"


class PageParser(HTMLParser):
    """The tags of a page and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.inside = True
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "script"

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


def read_data(path):
    return json.loads(PageParser(path.read_text(encoding="utf-8")).scripts[0])


@pytest.fixture
def copied_run(small_run, tmp_path):
    """The small run's tables in a directory of their own."""
    for name in ("config", "timings", "slices", "oof", "test", "metrics", "skipped"):
        source = getattr(small_run, name)
        shutil.copy(source, tmp_path / source.name)
    return Run(tmp_path)


def scan_table(positions, any_probability, series="p/st/s"):
    names = dict(
        zip(("PatientID", "StudyInstanceUID", "SeriesInstanceUID"), series.split("/"), strict=True)
    )
    values = {label: 0.1 for label in LABELS}
    columns = {"position": positions, **values, "any": any_probability, "series": series}
    return pd.DataFrame(columns).assign(**names, path="x.dcm", ImagePositionPatient="0\\0\\0")


def test_a_series_summary_is_the_one_computed_by_hand():
    # Steps 5, 5, 70 and 5: slices stand for 5, 5, 5, 5 and 5 mm, for a gap counts one median step.
    table = scan_table([0, 5, 10, 80, 85.0], [0.2, 0.6, 0.7, 0.5, 0.1])
    row = summarize_series(table).iloc[0]
    assert (row["slices"], row["any_maximum"], row["any_slices"]) == (5, 0.7, 3)
    assert row["any_extent_mm"] == 15
    assert row["epidural_extent_mm"] == 0
    assert summarize_series(table, threshold=0.65).iloc[0]["any_extent_mm"] == 5


def test_two_scans_at_the_same_positions_do_not_double_the_extent():
    np.testing.assert_allclose(measure_thickness(np.array([0, 0, 4, 4, 8, 8.0])).sum(), 12)


def test_no_extent_is_given_without_positions():
    assert np.isnan(summarize_series(scan_table([3.0], [0.9])).iloc[0]["any_extent_mm"])
    numbered = scan_table([1, 2, 3.0], [0.9] * 3).assign(ImagePositionPatient=None)
    summary = summarize_series(pd.concat([numbered, scan_table([0, 2.0], [0.9] * 2, "q/st/t")]))
    assert np.isnan(summary["any_extent_mm"][0])
    assert summary["any_extent_mm"][1] == 4


def test_the_manifest_names_weights_and_reasons_and_nobody(tmp_path):
    weights = tmp_path / "fold0" / "epoch1.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    reasons = [
        "the same file as /scans/DOE^JANE/1.dcm",
        "repeats the SOPInstanceUID of DOE^JANE/2.dcm with other content",
        "the header holds a value that cannot be read (DOE^JANE)",
        "no such member in /scans/DOE^JANE.zip",
        "/scans/DOE^JANE/3.dcm is not a regular file",
        "not a DICOM file",
        "not a DICOM file",
    ]
    skipped = pd.DataFrame({"path": "DOE^JANE", "reason": reasons})
    path = tmp_path / "out.json"
    write_manifest(
        path, Run(tmp_path), {weights: []}, scan_table([0, 1.0], [0.1, 0.2]), skipped, 1.23
    )
    manifest = json.loads(path.read_text())
    assert "DOE" not in path.read_text()
    assert manifest["skipped"] == {
        "not a DICOM file": 2,
        "the same file as another file": 1,
        "repeats the SOPInstanceUID of another file with other content": 1,
        "the header holds a value that cannot be read": 1,
        "no such member in another file": 1,
        "is not a regular file": 1,
    }
    assert count_reasons(skipped) == manifest["skipped"]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert manifest["weights_sha256"] == {"fold0/epoch1.safetensors": digest}
    assert (manifest["slices"], manifest["series"], manifest["seconds"]) == (2, 1, 1.2)


def make_classifier(architecture, image_size, **options):
    torch.manual_seed(0)
    config = ClassifierConfig(
        architecture=architecture, architecture_options=options, image_size=image_size, crop=False
    )
    return Classifier(config).eval()


def test_gradcam_under_a_pooled_linear_head_is_the_weighted_sum_of_features():
    # There the gradient is the head's weight over the number of places.
    model = make_classifier("resnext50_32x4d", 192, **SMALL_RESNEXT)
    images = torch.randint(0, 256, (2, 192, 192, 3), dtype=torch.uint8)
    layer = find_map_layer(model)
    assert layer is model.backbone.layer4
    maps, logits = compute_gradcam(model, layer, images)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images).numpy(), atol=1e-5)
        normalized = (images.permute(0, 3, 1, 2) - model.mean) / model.std
        features = model.backbone.forward_features(normalized)
        expected = torch.einsum("kc,bchw->bkhw", model.head.weight, features).relu() / 36
    np.testing.assert_allclose(maps, expected.numpy(), atol=1e-6)
    assert maps.max() > 0
    assert not [weight for weight in model.parameters() if weight.grad is not None]


def test_gradcam_lights_up_where_the_evidence_is():
    class Patches(torch.nn.Module):
        """Means of 8 × 8 patches as the one feature map."""

        feature_info = ({"module": "pool", "num_chs": 3},)

        def __init__(self):
            super().__init__()
            self.pool = torch.nn.AvgPool2d(8)

        def forward(self, images):
            return self.pool(images).mean(dim=(2, 3))

    model = make_classifier("resnext50_32x4d", 96, **SMALL_RESNEXT)
    model.backbone, model.head = Patches(), torch.nn.Linear(3, 6)
    torch.nn.init.ones_(model.head.weight)
    images = torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    images[0, 16:24, 64:72] = 255  # row 2, column 8 of the patches
    maps, _ = compute_gradcam(model, find_map_layer(model), images)
    assert maps.shape == (1, 6, 12, 12)
    assert np.unravel_index(maps[0, 5].argmax(), (12, 12)) == (2, 8)


@pytest.mark.parametrize(
    ("architecture", "image_size", "module", "places"),
    [
        ("resnet10t", 64, "layer2", 8),  # its last stage has 2 × 2 places
        ("resnet10t", 192, "layer4", 6),
        ("resnet10t", 8, "act1", 4),  # no stage is fine enough: the first
        ("convnext_atto", 96, "stages.2", 6),
        ("tf_efficientnet_b0", 96, "blocks.4", 6),
    ],
)
def test_gradcam_takes_the_deepest_stage_that_is_not_too_coarse(
    architecture, image_size, module, places
):
    model = make_classifier(architecture, image_size)
    layer = find_map_layer(model)
    assert layer is model.backbone.get_submodule(module)
    images = torch.randint(0, 256, (1, image_size, image_size, 3), dtype=torch.uint8)
    assert compute_gradcam(model, layer, images)[0].shape == (1, 6, places, places)


def test_a_map_is_as_strong_as_the_answer_and_not_stretched_over_a_series():
    maps = np.zeros((2, 6, 2, 2))
    maps[0, 5] = [[8, 2], [0, 4]]
    maps[1, 5] = [[0, 0], [1e-3, 0]]
    logits = np.full((2, 6), -9.0)
    logits[0, 5], logits[1, 5] = np.log(0.8 / 0.2), np.log(0.01 / 0.99)
    scaled = scale_maps(maps, logits)
    assert scaled[0, 5].tolist() == [[204, 51], [0, 102]]  # of 255: 0.8, 0.2, 0 and 0.4
    assert scaled[1, 5].tolist() == [[0, 0], [3, 0]]
    assert scaled[:, :5].max() == 0


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "embed_dim": 24}),
    ],
)
def test_without_feature_maps_the_page_says_so(
    architecture, options, small_run, tmp_path, monkeypatch
):
    model = make_classifier(architecture, 64, **options)
    assert find_map_layer(model) is None
    monkeypatch.setattr("kit.report.run_page.load_classifier", lambda path: model)
    table = pd.read_parquet(small_run.test).rename(
        columns=dict(zip(name_columns("bag"), LABELS, strict=True))
    )
    table = table[table["series"] == table["series"].iloc[0]].loc[:, ~table.columns.duplicated()]
    skipped = pd.DataFrame({"path": [], "reason": []})
    data = read_data(write_scan_report(table, tmp_path / "page.html", "weights", skipped))
    assert data["unmapped"] == architecture
    assert data["series"][0]["maps"] is None
    assert data["series"][0]["images"][0].startswith("data:image/webp")


def test_hostile_values_stay_data_and_the_policy_allows_this_script_alone():
    hostile = "</script><script>alert(1)</script><!-- [[data]] \u2028 & \"'"
    text = render_page({"title": hostile, hostile: [hostile]})
    parsed = PageParser(text)
    assert json.loads(parsed.scripts[0]) == {"title": hostile, hostile: [hostile]}
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    (policy,) = [a["content"] for tag, a in parsed.tags if "http-equiv" in a]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not [a for _, a in parsed.tags if a.get("src") or a.get("href", "data:,") != "data:,"]


def test_the_report_holds_the_runs_scores_and_says_what_it_is(small_run):
    path = write_report(small_run)
    text = path.read_text(encoding="utf-8")
    data, scores = read_data(path), json.loads(small_run.metrics.read_text())["scores"]
    assert path == small_run.report
    assert "Not a medical device" in text
    for model in MODELS:
        for part, losses in scores[model].items():
            triples = np.array(data["scores"][model][part])
            np.testing.assert_allclose(triples[:, 0], list(losses.values()), atol=1e-6)
            assert (triples[:, 1] <= triples[:, 0] + 1e-6).all()
            assert (triples[:, 0] <= triples[:, 2] + 1e-6).all()
    data_path = json.loads(small_run.config.read_text())["data"]
    assert data_path not in text
    assert ["data", "data"] in data["facts"]
    assert {history["kind"] for history in data["histories"]} == {"classifier", "LSTM"}
    assert all(len(h["validation"]) == 2 for h in data["histories"] if h["kind"] == "LSTM")


def test_the_report_counts_what_was_run_and_names_what_ran_it(small_run):
    data = read_data(write_report(small_run))
    facts, written = dict(data["facts"]), dict(data["written"])
    slices = pd.read_parquet(small_run.slices)
    for split, name in (("train", "training part"), ("test", "test part")):
        part = slices[slices["split"] == split]
        series, patients = part["series"].nunique(), part["PatientID"].nunique()
        assert facts[name] == f"{len(part)} slices of {patients} patients in {series} series"
    skipped = pd.read_csv(small_run.skipped)
    assert facts["files skipped"] == str(len(skipped))
    assert data["skipped"] == count_reasons(skipped)
    assert facts["classifier"] == "resnext50_32x4d, 64 pixels, 1 epoch"
    assert facts["begun with"] == f"kit {kit.__version__}"
    assert "kit" not in facts
    assert written["kit"].startswith(kit.__version__)
    assert {"timm", "pydicom", "torch", "processor"} <= written.keys()


def test_the_report_tells_how_many_intercepts_were_put_right(copied_run):
    slices = pd.read_parquet(copied_run.slices)
    expected = {0: "in no file", 1: "in 1 file, put right", 3: "in 3 files, put right"}
    for wrong, told in expected.items():
        slices["repaired"] = np.arange(len(slices)) < wrong
        slices.to_parquet(copied_run.slices)
        facts = dict(read_data(write_report(copied_run))["facts"])
        assert facts["wrong rescale intercept"] == told


def test_the_report_shows_each_series_with_truth_and_windows(small_run):
    data = read_data(write_report(small_run))
    oof = pd.read_parquet(small_run.oof)
    assert {series["name"] for series in data["series"]} == set(oof["series"])
    shown = data["series"][0]
    part = oof[oof["series"] == shown["name"]]
    assert np.array_equal(shown["truth"], part[list(LABELS)].to_numpy().T)
    for model in MODELS:
        values = part[name_columns(model)].to_numpy().T
        np.testing.assert_allclose(shown["probabilities"][model], values, atol=5e-7)
    np.testing.assert_allclose(shown["x"], part["position"] - part["position"].min(), atol=0.006)
    encoded = base64.b64decode(shown["images"][0].removeprefix("data:image/webp;base64,"))
    picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert picture.shape == (64, 192)
    image = page.read_image(part["path"].iloc[0], 64, crop=False)
    windows = np.hstack([image[..., k] for k in range(3)]).astype(int)
    assert np.abs(windows - picture).mean() < 6  # of 255, what the compression costs


def test_a_run_without_held_out_slices_shows_the_test_part_without_truth(copied_run):
    copied_run.oof.unlink()
    data = read_data(write_report(copied_run))
    assert "scores" not in data
    assert all(series["truth"] is None for series in data["series"])
    names = set(pd.read_parquet(copied_run.test)["series"])
    assert {series["name"] for series in data["series"]} == names
    highest = [max(series["probabilities"]["bag"][5]) for series in data["series"]]
    assert len(highest) == len(names)


def test_a_slice_whose_file_is_gone_is_shown_with_its_reason(copied_run):
    oof = pd.read_parquet(copied_run.oof)
    oof.loc[0, "path"] = "/nowhere/slice.dcm"
    oof.to_parquet(copied_run.oof)
    data = read_data(write_report(copied_run))
    (series,) = [s for s in data["series"] if s["name"] == oof["series"][0]]
    assert series["images"][0] == "no image: No such file or directory"
    assert series["images"][1].startswith("data:image/webp")


def test_images_end_where_the_page_would_grow_too_large(small_run, monkeypatch):
    oof = pd.read_parquet(small_run.oof)
    parts = [part for _, part in oof.groupby("series")][:3]
    monkeypatch.setattr(page, "IMAGE_BYTES", 1)
    drawn = draw_series(parts, ClassifierConfig(image_size=64, crop=False))
    first, *others = [text for series in drawn for text in series["images"]]
    assert first.startswith("data:")
    assert set(others) == {"no image: the page would grow beyond 20 MB"}


def test_fifty_series_of_a_patients_head_fit_on_a_page():
    slices = [page.read_image(str(path), 480) for path in sorted(shared(HEAD).glob("*.dcm"))]
    maps = 6 * 15 * 15 * 4 / 3  # of 480 pixels, in base64
    for number in (50 * 35, 25 * 35, 35):
        side = page.choose_side(number)
        weight = np.mean([len(page.encode_image(image, side)) for image in slices]) + maps
        assert weight * number < page.IMAGE_BYTES


def test_few_series_are_drawn_larger():
    sides = [page.choose_side(slices) for slices in (35, 1200, 1750, 5000)]
    assert sides == [288, 214, 146, 144]
    image = np.zeros((480, 480, 3), np.uint8)
    encoded = base64.b64decode(page.encode_image(image, 214).split(",")[1])
    shape = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE).shape
    assert shape == (214, 3 * 214)


def test_a_series_is_found_by_a_part_of_its_name_that_no_other_has():
    table = pd.DataFrame({"series": ["a/1/x", "a/1/x", "a/1/xy", "b/2/z"]})
    assert find_series(table, "a/1/x") == "a/1/x"
    assert find_series(table, "b/") == "b/2/z"
    with pytest.raises(ValueError, match="2 of the 3 series"):
        find_series(table, "a/1")
    with pytest.raises(ValueError, match="no of the 3 series"):
        find_series(table, "c")


def test_a_named_series_is_on_the_page_first(small_run, capsys):
    name = pd.read_parquet(small_run.oof)["series"].unique()[3]
    assert main(["report", str(small_run), "--series", name, "--quiet"]) == 0
    data = read_data(small_run.report)
    assert data["series"][0]["name"] == name
    assert data["named"] is True
    assert main(["report", str(small_run), "--series", "nobody", "--quiet"]) == 1
    assert "nobody" in capsys.readouterr().err


def test_a_series_shows_itself_in_a_notebook_as_a_page_in_a_frame(small_run):
    name = pd.read_parquet(small_run.test)["series"].iloc[0]
    picture = show_series(small_run, name)
    ((tag, attributes),) = PageParser(picture._repr_html_()).tags
    assert tag == "iframe"
    assert attributes["sandbox"] == "allow-scripts"
    assert attributes["srcdoc"] == picture.page
    assert html.escape(picture.page) in picture._repr_html_()
    (series,) = json.loads(PageParser(picture.page).scripts[0])["series"]
    assert series["name"] == name


def test_the_commit_is_that_of_the_checkout_or_none():
    commit = find_commit()
    assert commit is None or (len(commit) == 12 and int(commit, 16) >= 0)


def test_without_recurrence_a_slice_is_influenced_by_itself_alone():
    torch.manual_seed(0)
    config = LSTMConfig(embedding_size=4, hidden_size=4)
    model = SequenceLSTM(config).eval()
    for name, value in model.named_parameters():
        if name.startswith("lstm"):
            torch.nn.init.zeros_(value)
    embeddings = torch.randn(5, 4)
    influence = measure_influence(model, embeddings)
    # What is left is linear([e, e]): the middle differs from its neighbours' mean by that.
    off_diagonal = influence[:, ~np.eye(5, dtype=bool)]
    np.testing.assert_allclose(off_diagonal, 0, atol=1e-6)
    away = embeddings - torch.stack([
        embeddings[1], (embeddings[0] + embeddings[2]) / 2, (embeddings[1] + embeddings[3]) / 2,
        (embeddings[2] + embeddings[4]) / 2, embeddings[3],
    ])  # fmt: skip
    expected = torch.cat([away, away], dim=1) @ model.linear.weight.T
    diagonal = influence[:, np.arange(5), np.arange(5)].T
    np.testing.assert_allclose(diagonal, expected.detach().numpy(), atol=1e-5)


def test_influence_is_the_fall_of_each_logit_when_one_slice_is_replaced():
    torch.manual_seed(1)
    model = SequenceLSTM(LSTMConfig(embedding_size=6, hidden_size=3)).eval()
    embeddings, mask = torch.randn(1, 4, 6), torch.ones(1, 4, dtype=torch.bool)
    changed = embeddings.clone()
    changed[0, 2] = (embeddings[0, 1] + embeddings[0, 3]) / 2
    with torch.no_grad():
        expected = (model(embeddings, mask) - model(changed, mask))[0]  # (explained, label)
    influence = measure_influence(model, embeddings[0])
    np.testing.assert_allclose(influence[:, :, 2], expected.T.numpy(), atol=1e-6)


def test_held_out_and_test_series_are_explained(small_run, capsys):
    held_out = pd.read_parquet(small_run.oof).iloc[0]
    data = read_data(explain_series(small_run, held_out["series"]))
    slices = len(read_series(small_run, held_out["series"]))
    assert np.shape(data["explanation"]["any"]) == (slices, slices)
    assert ["folds", str(held_out["fold"])] in data["facts"]
    test = pd.read_parquet(small_run.test)["series"].iloc[0]
    assert main(["explain", str(small_run), test, "--quiet"]) == 0
    path = Run(small_run.path).explanation(test.split("/")[-1])
    assert capsys.readouterr().out.strip() == str(path)
    data = read_data(path)
    assert ["folds", "0, 1"] in data["facts"]
    assert data["series"][0]["truth"] is None
    assert np.abs(data["explanation"]["any"]).max() > 0


def test_a_single_slice_cannot_be_explained(copied_run):
    oof = pd.read_parquet(copied_run.oof).head(1)
    oof.to_parquet(copied_run.oof)
    with pytest.raises(ValueError, match="single slice"):
        explain_series(copied_run, oof["series"].iloc[0])


def test_where_there_is_no_run_nothing_is_said_of_its_stages(tmp_path, capsys):
    for command in (["explain", str(tmp_path / "none"), "x"], ["report", str(tmp_path / "none")]):
        assert main(command) == 1
        assert "there is no run here" in capsys.readouterr().err


def test_an_explanations_file_name_holds_no_separator(tmp_path):
    assert Run(tmp_path).explanation("../a b").name == "explain_.._a_b.html"
    assert Run(tmp_path).explanation("../a b").parent == tmp_path


def test_predictions_of_scans_come_with_page_manifest_and_a_row_a_series(
    small_data, small_run, tmp_path
):
    out = tmp_path / "scans.csv"
    folder = small_data / "stage_2_test"
    table, skipped = predict_folder(
        folder, small_run, out, by="series", threshold=0.3, page=True, workers=1
    )
    rows = pd.read_csv(out)
    assert len(rows) == table["series"].nunique()
    assert rows["any_maximum"].max() == pytest.approx(table["any"].max(), rel=1e-5)
    assert rows["any_slices"].sum() == (table["any"] >= 0.3).sum()
    manifest = json.loads(out.with_suffix(".json").read_text())
    assert sum(manifest["skipped"].values()) == len(skipped)
    assert len(manifest["weights_sha256"]) == 2 * (1 + 2)  # two folds: a classifier, two LSTMs
    data = read_data(out.with_suffix(".html"))
    assert all(series["truth"] is None for series in data["series"])
    maps = data["series"][0]["maps"]
    size = len(data["series"][0]["x"]) * len(LABELS) * np.prod(maps["shape"])
    assert len(base64.b64decode(maps["bytes"])) == size
    assert [row["series"] for row in data["summary"]] == list(table["series"].unique())
    # One rounding: the list's number and the table's are the same.
    highest = {series["name"]: max(series["probabilities"]["bag"][5]) for series in data["series"]}
    assert highest == {row["series"]: row["any_maximum"] for row in data["summary"]}


def test_a_pseudonymized_page_names_no_folder_of_a_patient(small_data, small_run, tmp_path):
    folder = tmp_path / "scans" / "DOE^JANE"
    folder.mkdir(parents=True)
    slices = pd.read_parquet(small_run.slices)
    series = slices[slices["split"] == "test"].groupby("series").get_group
    part = series(slices[slices["split"] == "test"]["series"].iloc[0])
    for path in part["path"]:
        shutil.copy(path, folder)
    first = sorted(folder.iterdir())[0]
    shutil.copy(first, folder / "~again.dcm")
    repeated = pydicom.dcmread(first)
    repeated.InstitutionName = "elsewhere"
    repeated.save_as(folder / "~other.dcm")
    out = tmp_path / "out.csv"
    predict_folder(tmp_path / "scans", small_run, out, page=True, pseudonymize=True, workers=1)
    for path in (out.with_suffix(".html"), out.with_suffix(".json")):
        text = path.read_text(encoding="utf-8")
        assert "DOE" not in text
        assert part["PatientID"].iloc[0] not in text
    assert read_data(out.with_suffix(".html"))["skipped"] == {
        "the same file as another file": 1,
        "repeats the SOPInstanceUID of another file with other content": 1,
    }
