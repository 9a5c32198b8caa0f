"""What a run takes, reckoned by hand from given rates; and measured, on a small phantom."""

from dataclasses import asdict, replace

import pytest

from kit import InputError
from kit.recipes import find_recipe
from kit.runs.plan import Machine, compare_sizes, describe_plan, make_plan, reckon, resize
from kit.runs.rates import Rates

RATES = Rates(
    image_size=480,
    headers=1000.0,
    training_images=50.0,
    images=80.0,
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
    # 4 epochs of 800 images, two GPUs at 10 a second, and 200 held out at 3 × 4 × 2 views a second.
    assert found["fold0 classifier"].seconds == pytest.approx(4 * (800 / 20 + 200 / 24))
    assert found["fold0 classifier"].bytes == (4 + 3) * 1000  # epochs, and a checkpoint of Adam
    # 2 stores of 1,100 images; the GPUs embed 8 a second, which is slower than to read 80.
    assert found["fold1 embeddings"].seconds == pytest.approx(2 * 1100 / 8)
    assert found["fold1 embeddings"].bytes == 2 * 1100 * (8 * 2 + 6 * 4 + 16)
    # 800 slices are 23.1 series, 6 steps of 4; forward: 200 held out 3 times, 300 twice.
    assert found["fold0 LSTM"].seconds == pytest.approx(2 * (3 * 6 * 0.5 + 1200 / 1000))
    assert found["fold0 LSTM"].bytes == 2 * ((3 + 3) * 500 + 2 * 300 * 64)
    assert {stage.bottleneck for stage in plan.stages[1:-1]} == {"computing"}
    assert plan.hours == pytest.approx((1.1 + 2 * (193.3333 + 275 + 20.4)) / 3600)


def test_one_model_on_all_data_holds_nothing_out():
    plan = reckon_small(train_folds=())
    found = {stage.name: stage.seconds for stage in plan.stages}
    assert found["foldall classifier"] == pytest.approx(4 * 1000 / 20)
    # 1,000 slices are 28.9 series, 8 steps of 4; forward: the 100 test slices twice.
    assert found["foldall LSTM"] == pytest.approx(2 * (3 * 8 * 0.5 + 200 / 1000))


def test_reading_is_named_where_it_is_the_bottleneck():
    slow = replace(RATES, training_images=5.0, images=6.0)
    plan = reckon(find_recipe("published", CHANGES), 1000, 100, TWO_GPUS, slow)
    training, embedding = plan.stages[1], plan.stages[2]
    assert (training.bottleneck, embedding.bottleneck) == ("reading", "reading")
    assert training.seconds == pytest.approx(4 * (800 / 5 + 200 / 6))
    assert embedding.seconds == pytest.approx(2 * 1100 / 6)


@pytest.mark.parametrize(
    ("threads", "seconds"),
    [(1, 0.1), (2, (0.02 + 2 * 0.1) / 2)],  # training alone; reading and training on two cores
)
def test_on_a_cpu_reading_and_computing_share_the_cores(threads, seconds):
    plan = reckon_small(replace(CPU, threads=threads), train_folds=())
    assert plan.stages[1].seconds == pytest.approx(4 * 1000 * seconds)


def test_computing_grows_as_the_pixels_do_and_reading_stays():
    half = resize(reckon_small(), 240, epochs=1)
    found = {stage.name: stage.seconds for stage in half.stages}
    # One GPU trains 40 a second, both more than the 50 that are read; embedding: 32 a second.
    assert found["fold0 classifier"] == pytest.approx(800 / 50 + 200 / 80)
    assert found["fold0 embeddings"] == pytest.approx(1100 / 32)  # of one epoch, one store
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
    assert described["sessions"] == 3  # 0.2718 hours
    assert described["gpu_hours"] == pytest.approx(2 * plan.hours)
    assert described["bytes"] == sum(stage.bytes for stage in plan.stages)
    assert described["rates"] == asdict(RATES)
    assert describe_plan(reckon_small(CPU), 1)["gpu_hours"] == 0


def test_a_plan_counts_the_images_of_both_parts(small_data):
    plan = make_plan(small_data, find_recipe("demo"), hours=0.01, workers=1)
    assert plan.train_images == len(list((small_data / "stage_2_train").iterdir()))
    assert plan.test_images == len(list((small_data / "stage_2_test").iterdir()))
    assert plan.hours > 0
    with pytest.raises(InputError, match="hours is 0"):
        make_plan(small_data, find_recipe("demo"), hours=0)
