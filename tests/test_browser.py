"""The pages in headless Chromium; skipped, saying so, where it or selenium is missing."""

import base64
import contextlib
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from kit.competition import LABELS
from kit.report.explain import explain_series
from kit.report.run_page import write_report
from kit.runs.directory import Run

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
webdriver = pytest.importorskip("selenium.webdriver")

HOSTILE = "<script>alert(1)</script>"
HOSTILE_FILE = "<img src=x onerror=alert(1)>"  # no slash: a file may bear it
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
    """The small run with hostile names: a patient's, and that of the data's folder.

    Weights and embeddings are linked.
    """
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
    config = json.loads(small_run.config.read_text())
    (directory / "config.json").write_text(json.dumps({**config, "data": f"/x/{HOSTILE_FILE}"}))
    return Run(directory)


@pytest.fixture(scope="module")
def scans_page(small_data, small_run, tmp_path_factory):
    """The page of a folder of scans, some of whose files have hostile names."""
    from kit.cli.commands import main

    work = tmp_path_factory.mktemp("scans")
    folder = shutil.copytree(small_data / "stage_2_test", work / HOSTILE_FILE)
    first = sorted(folder.iterdir())[0]
    shutil.copy(first, folder / f"~{HOSTILE_FILE}.dcm")
    (folder / f"{HOSTILE_FILE}.txt").write_text("no slice")
    first.rename(folder / f"{HOSTILE_FILE}.dcm")
    out = work / "scans.csv"
    command = ["predict", folder, "--run", small_run.path, "--out", out, "--report"]
    assert main([*map(str, command), "--threshold", "0.3", "--workers", "1", "--quiet"]) == 0
    return out.with_suffix(".html")


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


def focused(browser):
    """What the focused element is called: its id, value or the series it opens."""
    return browser.execute_script(
        "const a = document.activeElement; return a.id || a.value || a.dataset.number || a.tagName"
    )


@contextlib.contextmanager
def as_phone(browser, scheme="light"):
    feature = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.refresh()
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


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
    assert find(opened, "#found").text == "No series name contains this."


def test_a_page_opens_at_the_series_and_slice_of_its_address(browser, scans_page):
    table = pd.read_csv(scans_page.with_suffix(".csv"), dtype={"SOPInstanceUID": str})
    slice_ = table.iloc[len(table) // 2]
    series = table[table["SeriesInstanceUID"] == slice_["SeriesInstanceUID"]]
    place = series["SOPInstanceUID"].tolist().index(slice_["SOPInstanceUID"])
    named = f"series={slice_['SeriesInstanceUID']}&slice={slice_['SOPInstanceUID']}"
    browser.get("about:blank")
    browser.get(f"{scans_page.as_uri()}#{named}")
    assert slice_["SeriesInstanceUID"] in find(browser, "#series-name").text
    assert slice_number(browser) == place
    assert find(browser, "#address").text == ""
    browser.get(f"{scans_page.as_uri()}#series=nowhere")
    assert "does not draw the series nowhere" in find(browser, "#address").text
    assert browser.get_log("browser") == []


@pytest.fixture(scope="module")
def evaluation_page(scans_page, small_data):
    """The page of an evaluation of the page of scans, whose labels are drawn, beside it."""
    from kit.cli.commands import main

    out = scans_page.with_suffix("")
    table = pd.read_csv(scans_page.with_suffix(".csv"), dtype={"SOPInstanceUID": str})
    labels = table[["SOPInstanceUID"]].assign(any=np.arange(len(table)) % 5 // 3)
    labels.to_csv(out.with_name("labels.csv"), index=False)
    command = ["evaluate", scans_page.with_suffix(".csv"), out.with_name("labels.csv")]
    assert main([*map(str, command), "--out", str(out), "--resamples", "100", "--quiet"]) == 0
    return out / "evaluation.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_an_evaluation_fits_and_its_worst_cases_lead_to_their_slices(
    browser, evaluation_page, scheme
):
    browser.set_window_size(1200, 900)
    browser.get(evaluation_page.as_uri())
    with as_phone(browser, scheme):
        width = "return document.documentElement.scrollWidth"
        assert browser.execute_script(width) <= 390
        drawn = "return [...document.images].every((i) => i.complete && i.naturalWidth > 100)"
        assert len(find_all(browser, "figure img")) == 4
        assert browser.execute_script(drawn)
    assert "Not a medical device" in find(browser, "header").text
    link = find(browser, "td.text a")
    name = link.text
    browser.execute_script("arguments[0].click()", link)
    table = pd.read_csv(evaluation_page.parent.with_suffix(".csv"), dtype={"SOPInstanceUID": str})
    row = table[table["SOPInstanceUID"] == name].iloc[0]
    assert row["SeriesInstanceUID"] in find(browser, "#series-name").text
    assert slice_number(browser) == row["seq"] - 1
    assert browser.get_log("browser") == []


def test_a_hostile_patient_stays_text(opened):
    find(opened, "#search").send_keys("<script>")
    find(opened, "#found button").click()
    assert find(opened, "#found span").text == HOSTILE
    assert find(opened, "#series-name").text.startswith(HOSTILE)
    assert len(find_all(opened, "script")) == 2
    assert opened.get_log("browser") == []


def test_a_hostile_name_of_a_folder_stays_text(opened):
    shown = [value.text for value in find_all(opened, "#facts dd")]
    assert HOSTILE_FILE in shown
    assert len(find_all(opened, "img")) == 1  # the slice
    assert opened.get_log("browser") == []


def test_a_hostile_file_name_stays_text(browser, scans_page):
    browser.get(scans_page.as_uri())
    find(browser, "#facts summary").click()
    rows = {
        row.find_element("css selector", "th").text: row.find_element("css selector", "td").text
        for row in find_all(browser, "#facts tbody tr")
    }
    assert rows["a copy of another file"] == "1"
    assert "onerror" not in browser.page_source
    assert len(find_all(browser, "img")) == 1
    assert browser.get_log("browser") == []


def test_what_was_unfolded_stays_so_when_the_label_changes(opened):
    folds, facts = find(opened, "#scores details"), find(opened, "#facts details")
    for details in (folds, facts):
        details.find_element("css selector", "summary").click()
    choose_label(opened, "subdural")
    for section in ("scores", "facts"):
        assert find(opened, f"#{section} details").get_attribute("open") is not None
    assert find(opened, "#facts details") == facts  # not redrawn
    find(opened, "#scores summary").click()
    choose_label(opened, "any")
    assert find(opened, "#scores details").get_attribute("open") is None


def test_a_series_opened_by_the_keyboard_keeps_the_focus(opened):
    from selenium.webdriver.common.keys import Keys

    find(opened, "#search").send_keys(Keys.TAB, Keys.NULL)
    press(opened, Keys.TAB)
    number = focused(opened)
    assert number.isdigit()
    press(opened, Keys.ENTER)
    assert focused(opened) == number
    assert find(opened, f"#found [data-number='{number}']").get_attribute("aria-current") == "true"
    assert len(find_all(opened, "#found [aria-current=true]")) == 1


def test_a_named_series_is_the_one_opened(browser, hostile_run):
    names = find_names(hostile_run)
    for name in (names[0], names[-1]):
        write_report(hostile_run, (name,))
        browser.get(hostile_run.report.as_uri())
        assert find(browser, "#series-name").text.startswith(name)
        current = find(browser, "#found [aria-current=true]")
        assert current.get_attribute("title") == name
        box = find(browser, "#found").rect
        assert box["y"] <= current.rect["y"] < box["y"] + box["height"]
    hostile_run.report.unlink()


def find_names(run):
    return pd.read_parquet(run.oof)["series"].unique()


def test_one_epoch_of_training_is_a_dot_in_the_middle_over_its_number(opened):
    plot = find(opened, "#histories .plot")
    ticks = plot.find_elements("css selector", "text[text-anchor=middle]")
    assert [tick.text for tick in ticks] == ["1", "epoch", "loss"]
    dot = plot.find_element("css selector", "circle")
    assert float(dot.get_attribute("cx")) == pytest.approx(float(ticks[0].get_attribute("x")))


def test_a_model_is_hidden_and_shown_by_its_legend(opened):
    find(opened, "#chart-legend [data-model=lstm]").click()
    names = [path.get_attribute("data-name") for path in find_all(opened, "#chart .curve")]
    assert names == ["classifier", "bag"]
    find(opened, "#chart-legend [data-model=rolling_mean]").click()
    names = [path.get_attribute("data-name") for path in find_all(opened, "#chart .curve")]
    assert names == ["classifier", "rolling_mean", "bag"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phones_width_needs_no_sideways_scrolling_and_text_stands_out(opened, scheme):
    with as_phone(opened, scheme):
        width = opened.execute_script("return document.documentElement.scrollWidth")
        ink, paper, hint, panel = opened.execute_script(
            "const s = getComputedStyle(document.body), box = byId('search');"
            "return [s.color, s.backgroundColor, getComputedStyle(box, '::placeholder').color,"
            " getComputedStyle(box).backgroundColor]"
        )
    assert width == 390
    assert contrast(ink, paper) > 7  # WCAG 2.2, level AAA
    assert contrast(hint, panel) > 4.5  # level AA


def test_on_a_phone_no_label_is_cut_and_a_table_keeps_its_row_names(opened):
    place = "const b = arguments[0].getBoundingClientRect(); return [b.left, b.right]"
    with as_phone(opened):
        for label in find_all(opened, "#labels label"):
            left, right = opened.execute_script(place, label)
            assert 0 <= left < right <= 390
        table = find(opened, "#scores .scroll")
        name = find(opened, "#scores tbody th")
        before = opened.execute_script(place, name)
        opened.execute_script("arguments[0].scrollLeft = 200", table)
        assert opened.execute_script("return arguments[0].scrollLeft", table) == 200
        assert opened.execute_script(place, name) == before


def test_the_scans_page_too_fits_a_phone(browser, scans_page):
    browser.get(scans_page.as_uri())
    with as_phone(browser):
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        name = find(browser, "#summary tbody th")
        assert 60 < name.size["width"] <= 0.4 * 390 + 20


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
    own = find_all(browser, "#row rect.own")
    bars = find_all(browser, "#row rect")
    assert own == [bars[-1]]
    # Colours by the neighbours' 99th percentile, and bars that do not touch the plot's edge.
    script = (
        "return [data.explanation.any, byId('row').querySelector('svg').viewBox.baseVal.height]"
    )
    matrix, height = browser.execute_script(script)
    matrix = np.abs(matrix)
    others = np.sort(matrix[~np.eye(len(matrix), dtype=bool)])
    full = others[int(0.99 * (len(others) - 1))]
    assert f"+{full:.2f} logits" in find(browser, "#explanation .scale").text
    for bar in bars:
        top, tall = float(bar.get_attribute("y")), float(bar.get_attribute("height"))
        assert top > 9
        assert top + tall < height - 41
    assert browser.get_log("browser") == []


def test_the_scans_page_draws_grad_cam_that_can_be_switched_off(browser, scans_page):
    browser.get(scans_page.as_uri())
    series = json.loads(browser.execute_script("return byId('data').textContent"))["series"]
    maps = [np.frombuffer(base64.b64decode(one["maps"]["bytes"]), np.uint8) for one in series]
    number = int(np.argmax([values.max() for values in maps]))
    highest = maps[number].max()
    image, label = divmod(int(maps[number].argmax()) // np.prod(series[number]["maps"]["shape"]), 6)
    choose_label(browser, LABELS[label])
    find(browser, f"#found [data-number='{number}']").click()
    browser.execute_script(f"moveTo({image})")
    strongest = (
        "const c = byId('map'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return Math.max(...d.filter((_, i) => i % 4 === 3))"
    )
    assert browser.execute_script(strongest) == pytest.approx(0.65 * highest, abs=10)
    assert "8 × 8 cells" in find(browser, "#series").text
    find(browser, "#overlay").click()
    assert not find(browser, "#map").is_displayed()
    assert "Not a medical device" in find(browser, "header").text
    assert find_all(browser, "#chart .band") == []
    assert browser.get_log("browser") == []


def test_a_row_of_the_summary_opens_its_series_and_the_threshold_is_drawn(browser, scans_page):
    browser.get(scans_page.as_uri())
    button = find_all(browser, "#summary td button")[3]
    row = button.find_element("xpath", "./ancestor::tr")
    maximum = row.find_element("css selector", "td").text
    browser.execute_script("arguments[0].click()", button)
    assert find(browser, "#series-name").text.endswith(button.text)
    current = find(browser, "#found [aria-current=true]").text.split("\n")
    assert current[1] == maximum
    assert current[2].startswith(f"{button.text}, ")
    assert f"ensemble {maximum}" in find(browser, "#readout").text
    assert "threshold 0.3" in find(browser, "#chart-legend").text
    level, low, high = browser.execute_script(
        "return [byId('level').y1.baseVal.value, scales.toY(0), scales.toY(1)]"
    )
    assert level == pytest.approx(low + 0.3 * (high - low))
