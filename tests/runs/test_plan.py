"""What a run takes, reckoned by hand from given rates; and measured, on a small phantom."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kit import InputError, progress
from kit.recipes import RECIPES, find_recipe
from kit.runs import plan as planning
from kit.runs.directory import Run, begin_run
from kit.runs.plan import (
    Machine,
    compare_sizes,
    describe_plan,
    find_machine,
    make_plan,
    note_plan,
    reckon,
    resize,
    settle_size,
)
from kit.runs.rates import Rates
from kit.slices.competition_files import CompetitionFiles

RATES = Rates(
    image_size=480,
    headers=1000.0,
    training_images=50.0,
    images=80.0,
    reading_start=3.0,
    trained=10.0,
    embedded=4.0,
    lstm_step_seconds=0.5,
    lstm_slices=1000.0,
    embedding_size=8,
    classifier_bytes=1000,
    lstm_bytes=500,
)
TWO_GPUS = Machine(devices=2, gpu="T4", cores=4, threads=2, workers=3)
CPU = Machine(devices=1, gpu="", cores=2, threads=1, workers=1)
CHANGES = {
    "folds": 5,
    "train_folds": (0, 1),
    "bag_classifier_epochs": 2,
    "bag_lstm_epochs": 2,
    "classifier.epochs": 4,
    "lstm.epochs": 3,
    "lstm.batch_size": 4,
}


def reckon_small(machine=TWO_GPUS, **changes):
    recipe = find_recipe("published", {**CHANGES, **changes})
    return reckon(recipe, 1000, 100, machine, RATES)


def test_the_stages_of_every_fold_take_what_the_rates_say():
    plan = reckon_small()
    found = {stage.name: stage for stage in plan.stages}
    parts = ("classifier", "embeddings", "LSTM")
    folds = [f"fold{fold} {part}" for fold in (0, 1) for part in parts]
    assert list(found) == ["index", *folds, "ensemble, report"]
    assert found["index"].seconds == pytest.approx(1.1)  # 1,100 headers
    # 4 epochs of 800 images, two GPUs at 10 a second, and 200 held out at 3 × 4 × 2 views a second;
    # the readers start for each.
    assert found["fold0 classifier"].seconds == pytest.approx(4 * (3 + 800 / 20 + 3 + 200 / 24))
    assert found["fold0 classifier"].bytes == 2 * 1000  # the last two epochs of four
    # 2 stores of 1,100 images; the GPUs embed 8 a second, which is slower than to read 80.
    assert found["fold1 embeddings"].seconds == pytest.approx(2 * (3 + 1100 / 8))
    assert found["fold1 embeddings"].bytes == 2 * 1100 * (8 * 2 + 6 * 4 + 16)
    fewer = {stage.name: stage for stage in reckon_small(kept_epochs=1).stages}
    assert fewer["fold1 embeddings"].bytes == 1100 * (8 * 2 + 2 * (6 * 4 + 16))
    # 800 slices are 23.1 series, 6 steps of 4; forward: 200 held out 3 times, 300 twice.
    assert found["fold0 LSTM"].seconds == pytest.approx(2 * (3 * 6 * 0.5 + 1200 / 1000))
    assert found["fold0 LSTM"].bytes == 2 * 2 * 500 + 2 * 2 * 300 * 64
    assert {stage.bottleneck for stage in plan.stages[1:-1]} == {"computing"}
    assert plan.hours == pytest.approx((1.1 + 2 * (24 + 193.3333 + 6 + 275 + 20.4)) / 3600)


@pytest.mark.parametrize(("at_256", "size"), [(60, 256), (90, 320), (140, 384), (250, 480)])
def test_two_t4_take_tonight_in_the_largest_size_that_ends_in_time(at_256, size, monkeypatch):
    """90 images a second: 256 px in the 3 to 5 hours that are published, 320 px in 7, 384 in 10."""

    def measure(paths, recipe, workers, seconds):
        growth = (recipe.classifier.image_size / 256) ** 2
        return replace(
            RATES,
            image_size=recipe.classifier.image_size,
            headers=2000.0,
            training_images=900.0,
            images=1000.0,
            trained=at_256 / growth,
            embedded=3 * at_256 / growth,
            lstm_step_seconds=0.06,
            lstm_slices=20_000.0,
        )

    files = CompetitionFiles(["a"] * 752_803, ["b"] * 121_232, None, None)
    monkeypatch.setattr(planning, "find_competition", lambda data: files)
    monkeypatch.setattr(planning, "measure_rates", measure)
    plan = make_plan(Path("data"), RECIPES["tonight"], 11.0, TWO_GPUS, auto=True)
    assert plan.recipe.classifier.image_size == size
    assert plan.hours < 9.9 or size == 256
    if at_256 == 90:
        of_classifier = [stage.seconds / 3600 for stage in resize(plan, 256).stages[1:3]]
        assert 3 < sum(of_classifier) < 5


def test_what_a_session_leaves_on_kaggle_stays_below_19_gb():
    """Of 20: the stores that no LSTM needs any more are gone, and so is every checkpoint."""
    # In one folder, embeddings whose LSTM has predicted make room for the next.
    # ResNeXt-101 32x8d has 86.8 million numbers, the LSTM of 2,048 units 268.5 million.
    rates = replace(
        RATES, embedding_size=2048, classifier_bytes=347_000_000, lstm_bytes=1_074_000_000
    )
    left, peaks = {}, {}
    for name in ("single", "tonight", "modern", "published"):
        recipe = replace(RECIPES[name], train_folds=RECIPES[name].train_folds[:1])
        plan = reckon(recipe, 752_803, 121_232, TWO_GPUS, rates)
        left[name] = sum(stage.bytes for stage in plan.stages) / 1e9
        peaks[name] = plan.peak / 1e9
    assert 12 < left["single"] < 13
    assert 13 < left["published"] < 14
    assert max(left.values()) < 19
    assert 18 < peaks["single"] < peaks["published"] < 19
    assert peaks["modern"] < 19  # its embeddings and LSTMs are in fact smaller


def test_one_model_on_all_data_holds_nothing_out():
    plan = reckon_small(train_folds=())
    found = {stage.name: stage.seconds for stage in plan.stages}
    assert found["foldall classifier"] == pytest.approx(4 * (3 + 1000 / 20))
    # 1,000 slices are 28.9 series, 8 steps of 4; forward: the 100 test slices twice.
    assert found["foldall LSTM"] == pytest.approx(2 * (3 * 8 * 0.5 + 200 / 1000))


def test_reading_is_named_where_it_is_the_bottleneck():
    slow = replace(RATES, training_images=5.0, images=6.0)
    plan = reckon(find_recipe("published", CHANGES), 1000, 100, TWO_GPUS, slow)
    training, embedding = plan.stages[1], plan.stages[2]
    assert (training.bottleneck, embedding.bottleneck) == ("reading", "reading")
    assert training.seconds == pytest.approx(4 * (3 + 800 / 5 + 3 + 200 / 6))
    assert embedding.seconds == pytest.approx(2 * (3 + 1100 / 6))


@pytest.mark.parametrize(
    ("threads", "seconds"),
    [(1, 0.1), (2, (0.02 + 2 * 0.1) / 2)],  # training alone; reading and training on two cores
)
def test_on_a_cpu_reading_and_computing_share_the_cores(threads, seconds):
    plan = reckon_small(replace(CPU, threads=threads), train_folds=())
    assert plan.stages[1].seconds == pytest.approx(4 * (3 + 1000 * seconds))


def test_computing_grows_as_the_pixels_do_and_reading_stays():
    half = resize(reckon_small(), 240, epochs=1)
    found = {stage.name: stage.seconds for stage in half.stages}
    # One GPU trains 40 a second, both more than the 50 that are read; embedding: 32 a second.
    assert found["fold0 classifier"] == pytest.approx(3 + 800 / 50 + 3 + 200 / 80)
    assert found["fold0 embeddings"] == pytest.approx(3 + 1100 / 32)  # of one epoch, one store
    assert (half.recipe.classifier.image_size, half.recipe.bag_classifier_epochs) == (240, 1)
    again = resize(half, 480, epochs=4)
    assert [stage.name for stage in again.stages] == [stage.name for stage in half.stages]
    assert again.rates == RATES


def test_sizes_and_epochs_are_compared_by_the_hours_of_the_whole_run():
    plan = reckon_small()
    table = compare_sizes(plan)
    assert list(table) == [256, 320, 384, 480]
    assert list(table[480]) == [1, 2, 3, 4, 5]
    assert table[480][4] == pytest.approx(plan.hours)
    assert table[256][4] == pytest.approx(resize(plan, 256).hours)
    values = [hours for row in table.values() for hours in row.values()]
    assert all(table[256][epochs] < table[480][epochs] for epochs in range(1, 6))
    assert min(values) == table[256][1]


def test_sessions_and_gpu_hours_are_those_of_the_totals():
    plan = reckon_small()
    described = describe_plan(plan, hours=0.1)
    assert described["sessions"] == 3  # 0.2885 hours
    assert described["gpu_hours"] == pytest.approx(2 * plan.hours)
    assert described["bytes"] == sum(stage.bytes for stage in plan.stages)
    assert described["rates"] == asdict(RATES)
    assert describe_plan(reckon_small(CPU), 1)["gpu_hours"] == 0


def test_a_plan_counts_the_images_of_both_parts(small_data):
    plan = make_plan(small_data, find_recipe("demo"), 0.01, find_machine(workers=1))
    assert plan.train_images == len(list((small_data / "stage_2_train").iterdir()))
    assert plan.test_images == len(list((small_data / "stage_2_test").iterdir()))
    assert plan.hours > 0
    with pytest.raises(InputError, match="hours is 0"):
        make_plan(small_data, find_recipe("demo"), 0, CPU)


@pytest.fixture
def one_gpu(monkeypatch):
    """1,000 training files; a GPU that trains 10 images of 480 px a second and waits for nothing.

    So 4 epochs take 400 s at 480 px, 256 s at 384, 178 s at 320 and 114 s at 256. Yields the
    sizes that were measured.
    """
    measured = []

    def measure(paths, recipe, workers, seconds):
        assert (len(paths), workers) == (1000, 3)
        size = recipe.classifier.image_size
        measured.append(size)
        fast = dict.fromkeys(("headers", "training_images", "images", "embedded"), 1e9)
        fast |= {"lstm_step_seconds": 1e-9, "lstm_slices": 1e9, "reading_start": 0.0}
        return replace(RATES, image_size=size, trained=10 * (480 / size) ** 2, **fast)

    files = CompetitionFiles(["a"] * 1000, [], None, None)
    monkeypatch.setattr(planning, "measure_rates", measure)
    monkeypatch.setattr(planning, "find_competition", lambda data: files)
    return measured


ALL_DATA = find_recipe("published", {**CHANGES, "train_folds": ()})
ONE_GPU = replace(TWO_GPUS, devices=1)


@pytest.mark.parametrize(
    ("seconds", "size"),
    # Nine tenths of 285 s are 256.5 s, of 284 s 255.6 s. Nothing ends in 10 s.
    [(1000, 480), (285, 384), (284, 320), (150, 256), (10, 256)],
)
def test_auto_takes_the_largest_size_that_ends_in_time(one_gpu, seconds, size):
    plan = make_plan("data", ALL_DATA, seconds / 3600, ONE_GPU, auto=True)
    assert plan.recipe.classifier.image_size == size
    assert one_gpu == [480, 384, 320, 256][: len(one_gpu)]
    assert one_gpu[-1] == size


def test_the_plan_of_a_run_is_noted_and_told_once(one_gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "quiet", False)  # a command of another test may have set it
    run = Run(tmp_path)
    note_plan(run, "data", ALL_DATA, 285 / 3600, ONE_GPU, auto=True)
    told = "plan: published at 384 px takes about 4 min, 1 session of 0.0791667 h, and leaves"
    assert told in capsys.readouterr().err
    chosen = settle_size(run, ALL_DATA, auto=True)
    assert chosen.classifier.image_size == 384
    note_plan(run, "data", ALL_DATA, 285 / 3600, ONE_GPU, auto=True)
    assert one_gpu == [480, 384]  # not measured again
    begin_run(run, chosen, tmp_path)
    # On another machine it is, with the size that the run was begun with.
    note_plan(run, "data", ALL_DATA, 10 / 3600, replace(ONE_GPU, gpu="L4"), auto=True)
    assert one_gpu == [480, 384, 384]
    assert settle_size(run, ALL_DATA, auto=True) == chosen
    assert settle_size(run, ALL_DATA, auto=False) == ALL_DATA
