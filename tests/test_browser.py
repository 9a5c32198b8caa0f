"""The pages in headless Chromium; skipped, saying so, where it or selenium is missing."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from browser_pages import as_phone, contrast, find, find_all, press

from kit.report.explain import explain_series
from kit.report.run_page import write_report
from kit.runs.directory import Run

HOSTILE = "<script>alert(1)</script>"
HOSTILE_FILE = "<img src=x onerror=alert(1)>"  # no slash: a file may bear it


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


def choose_label(browser, label):
    find(browser, f"#labels label:has([value={label}])").click()


def focused(browser):
    """What the focused element is called: its id, value or the series it opens."""
    return browser.execute_script(
        "const a = document.activeElement; return a.id || a.value || a.dataset.number || a.tagName"
    )


def test_the_page_opens_with_every_section_and_a_silent_console(opened):
    ids = [section.get_attribute("id") for section in find_all(opened, "main > section")]
    assert ids == ["model", "facts", "scores", "reader", "curves", "reliability", "histories"]
    assert "Not a medical device" in find(opened, "header").text
    assert opened.get_log("browser") == []
    resources = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert [n for n in opened.execute_script(resources) if not n.startswith("data:")] == []


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
    assert row["SeriesInstanceUID"] in find(browser, "#ids").text
    assert name in find(browser, "#ids").text
    assert browser.get_log("browser") == []


def test_a_hostile_patient_stays_text(opened):
    find(opened, "#search").send_keys("<script>")
    find(opened, "#found button").click()
    assert find(opened, "#found .name span").text == HOSTILE
    assert find(opened, "#series-name").text.startswith(HOSTILE)
    assert len(find_all(opened, "script:not([type])")) == 1
    assert opened.get_log("browser") == []


def test_a_hostile_name_of_a_folder_stays_text(opened):
    shown = [value.text for value in find_all(opened, "#facts dd")]
    assert HOSTILE_FILE in shown
    assert find_all(opened, "img") == []
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
    assert find_all(browser, "img") == []
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
        assert find(browser, "#studies-body th").is_displayed()


def test_everything_is_reached_by_the_tab_key(opened):
    from selenium.webdriver.common.keys import Keys

    reached = set()
    for _ in range(60):
        press(opened, Keys.TAB)
        element = opened.switch_to.active_element
        reached.add(element.get_attribute("id") or element.get_attribute("value"))
    assert {"any", "search", "slider", "view", "skip"} <= reached


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


def test_a_runs_page_is_whole_on_paper(opened):
    folded = "return [...document.querySelectorAll('details')].filter((one) => !one.open).length"
    before = opened.execute_script(folded)
    assert before >= 2
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        opened.execute_script("dispatchEvent(new Event('beforeprint'))")
        assert opened.execute_script(folded) == 0
        assert not find(opened, "#labels").is_displayed()  # no bar over the text
        for box in find_all(opened, ".scroll"):
            assert box.value_of_css_property("overflow") == "visible"
        assert find(opened, "#view").is_displayed()
        assert find(opened, "#facts tbody").is_displayed()
        opened.execute_script("dispatchEvent(new Event('afterprint'))")
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert opened.execute_script(folded) == before


def test_no_page_shows_a_value_that_is_missing(opened, browser, scans_page):
    """Not as `null`, `undefined` or `NaN`: JavaScript writes these where nobody looks."""
    for page in (opened.current_url, scans_page.as_uri()):
        browser.get(page)
        words = set(find(browser, "main").get_property("textContent").split())
        assert not words & {"null", "undefined", "NaN", "false", "true"}
