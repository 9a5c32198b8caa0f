"""The pages in headless Chromium; skipped, saying so, where it or selenium is missing."""

import base64
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from kit.competition import LABELS
from kit.explain import explain_series
from kit.report import write_report
from kit.run import Run

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
webdriver = pytest.importorskip("selenium.webdriver")

HOSTILE = "<script>alert(1)</script>"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --window-size=1200,900"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.chrome.service.Service(driver)
    with webdriver.Chrome(options=options, service=service) as opened:
        yield opened


@pytest.fixture(scope="module")
def hostile_run(small_run, tmp_path_factory):
    """The small run with a patient of a hostile name; weights and embeddings are linked."""
    directory = tmp_path_factory.mktemp("hostile")
    for source in small_run.path.iterdir():
        if source.is_dir():
            os.symlink(source, directory / source.name)
        elif source.name not in (".lock", "report.html"):
            shutil.copy(source, directory)
    oof = pd.read_parquet(small_run.oof)
    victim = oof["PatientID"].iloc[0]
    changed = oof["PatientID"] == victim
    oof["PatientID"] = oof["PatientID"].where(~changed, HOSTILE)
    oof["series"] = oof["series"].str.replace(victim, HOSTILE)
    oof.to_parquet(directory / "oof.parquet")
    return Run(directory)


@pytest.fixture
def opened(browser, hostile_run):
    """The report, freshly opened at a desktop's width."""
    if not hostile_run.report.exists():
        write_report(hostile_run)
    browser.set_window_size(1200, 900)
    browser.get(hostile_run.report.as_uri())
    return browser


def find(browser, selector):
    return browser.find_element("css selector", selector)


def find_all(browser, selector):
    return browser.find_elements("css selector", selector)


def choose_label(browser, label):
    find(browser, f"#labels label:has([value={label}])").click()


def slice_number(browser):
    return int(find(browser, "#slider").get_attribute("value"))


def press(browser, key):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(key).perform()


def test_the_page_opens_with_every_section_and_a_silent_console(opened):
    ids = [section.get_attribute("id") for section in find_all(opened, "main > section")]
    assert ids == ["facts", "scores", "series", "curves", "reliability", "histories"]
    assert "Not a medical device" in find(opened, "header").text
    assert opened.get_log("browser") == []
    resources = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert [n for n in opened.execute_script(resources) if not n.startswith("data:")] == []


def test_slider_keys_buttons_and_plot_move_the_slice(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    slider = find(opened, "#slider")
    last = int(slider.get_attribute("max"))
    slider.send_keys(Keys.HOME)
    assert slice_number(opened) == 0
    first = find(opened, "#slice").get_attribute("src")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert slice_number(opened) == 1
    assert find(opened, "#readout").text.startswith("slice 2 of")
    assert find(opened, "#slice").get_attribute("src") != first
    opened.execute_script("document.activeElement.blur()")
    press(opened, Keys.ARROW_RIGHT)
    press(opened, Keys.ARROW_RIGHT)
    press(opened, Keys.ARROW_LEFT)
    assert slice_number(opened) == 2
    find(opened, "[aria-label='Next slice']").click()
    assert slice_number(opened) == 3
    cursor = float(find(opened, "#cursor").get_attribute("x1"))
    chart = find(opened, "#chart svg")
    end = chart.size["width"] // 2 - 11  # from the middle to the end of the axis
    ActionChains(opened).move_to_element_with_offset(chart, end, 0).perform()
    assert slice_number(opened) == last
    assert float(find(opened, "#cursor").get_attribute("x1")) > cursor


def test_the_image_under_the_cursor_is_three_windows_wide(opened):
    size = "const i = document.querySelector('#slice'); return [i.naturalWidth, i.naturalHeight]"
    assert opened.execute_script(size) == [192, 64]
    assert not find(opened, "#empty").is_displayed()


def test_the_chosen_label_changes_curves_and_order(opened):
    def drawn():
        return [path.get_attribute("d") for path in find_all(opened, "path.curve")]

    before, rates = drawn(), find(opened, "#found").text
    choose_label(opened, "subdural")
    assert len(drawn()) == len(before)
    assert all(old != new for old, new in zip(before[:3], drawn()[:3], strict=True))
    assert find(opened, "#found").text != rates
    assert "probability, subdural" in find(opened, "#chart").text
    shown = [float(line) for line in find(opened, "#found").text.split("\n")[1::3]]
    assert shown == sorted(shown, reverse=True)


def test_search_finds_a_series_by_a_part_of_its_name(opened, hostile_run):
    oof = pd.read_parquet(hostile_run.oof)
    name = oof["series"].unique()[-1]
    find(opened, "#search").send_keys(name.split("/")[-1])
    (button,) = find_all(opened, "#found button")
    button.click()
    assert find(opened, "#series-name").text.startswith(name)
    assert int(find(opened, "#slider").get_attribute("max")) == (oof["series"] == name).sum() - 1
    find(opened, "#search").send_keys("no such")
    assert find(opened, "#found").text == "No series has this in its name."


def test_a_hostile_patient_stays_text(opened):
    find(opened, "#search").send_keys("<script>")
    find(opened, "#found button").click()
    assert find(opened, "#found span").text == HOSTILE
    assert find(opened, "#series-name").text.startswith(HOSTILE)
    assert len(find_all(opened, "script")) == 2
    assert opened.get_log("browser") == []


def test_a_model_is_hidden_and_shown_by_its_legend(opened):
    find(opened, "#chart-legend [data-model=lstm]").click()
    names = [path.get_attribute("data-name") for path in find_all(opened, "#chart .curve")]
    assert names == ["classifier", "bag"]
    find(opened, "#chart-legend [data-model=rolling_mean]").click()
    names = [path.get_attribute("data-name") for path in find_all(opened, "#chart .curve")]
    assert names == ["classifier", "rolling_mean", "bag"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phones_width_needs_no_sideways_scrolling_and_text_stands_out(opened, scheme):
    feature = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened.refresh()
    try:
        width = opened.execute_script("return document.documentElement.scrollWidth")
        ink, paper = opened.execute_script(
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        )
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert width == 390
    assert contrast(ink, paper) > 7  # WCAG 2.2, level AAA


def contrast(one: str, other: str) -> float:
    """The WCAG contrast of two `rgb(…)` colours."""
    light = []
    for color in (one, other):
        parts = [int(part) / 255 for part in color[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(light) / min(light)


def test_everything_is_reached_by_the_tab_key(opened):
    from selenium.webdriver.common.keys import Keys

    reached = set()
    for _ in range(60):
        press(opened, Keys.TAB)
        element = opened.switch_to.active_element
        reached.add(element.get_attribute("id") or element.get_attribute("value"))
    assert {"any", "search", "slider"} <= reached


def test_the_explanation_frames_the_row_of_the_slice_shown(browser, hostile_run):
    from selenium.webdriver.common.keys import Keys

    name = pd.read_parquet(hostile_run.oof)["series"].iloc[-1]
    browser.get(explain_series(hostile_run, name).as_uri())
    slider = find(browser, "#slider")
    slider.send_keys(Keys.HOME)
    low = float(find(browser, "#heat rect.cursor").get_attribute("y"))
    assert "Contributions to slice 1" in find(browser, "#explanation").text
    slider.send_keys(Keys.END)
    assert float(find(browser, "#heat rect.cursor").get_attribute("y")) < low
    assert browser.get_log("browser") == []


def test_the_scans_page_draws_grad_cam_that_can_be_switched_off(
    browser, small_data, small_run, tmp_path
):
    from kit.prediction import predict_folder

    out = tmp_path / "scans.csv"
    predict_folder(small_data / "stage_2_test", small_run, out, page=True, workers=1)
    browser.get(out.with_suffix(".html").as_uri())
    series = json.loads(browser.execute_script("return byId('data').textContent"))["series"]
    # One label's strongest place in one series is 255: there the overlay must be seen.
    maps = [np.frombuffer(base64.b64decode(one["maps"]["bytes"]), np.uint8) for one in series]
    number = next(number for number, values in enumerate(maps) if values.max() == 255)
    image, label = divmod(int(maps[number].argmax()) // np.prod(series[number]["maps"]["shape"]), 6)
    choose_label(browser, LABELS[label])
    find(browser, f"#found [data-number='{number}']").click()
    browser.execute_script(f"moveTo({image})")
    strongest = (
        "const c = byId('map'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return Math.max(...d.filter((_, i) => i % 4 === 3))"
    )
    assert browser.execute_script(strongest) == pytest.approx(0.65 * 255, abs=10)
    find(browser, "#overlay").click()
    assert not find(browser, "#map").is_displayed()
    assert "Not a medical device" in find(browser, "header").text
    assert find_all(browser, "#chart .band") == []
    assert browser.get_log("browser") == []
