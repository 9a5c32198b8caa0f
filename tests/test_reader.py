"""The reader of a page in headless Chromium: each way to move it, and what it says."""

import base64
import time
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
from browser_pages import as_phone, contrast, find, find_all, press, slice_number
from dicom_files import write_cut_short, write_slice
from report_pages import decode_image, read_images, restore_hounsfield

from kit.competition import LABELS
from kit.dicom import read_hounsfield
from kit.ensemble import name_columns
from kit.report.scans_page import write_scan_report
from kit.runs.prediction import Predictions, load_model
from kit.runs.provenance import SYNTHETIC, UNRECORDED
from kit.slices import index_slices
from kit.slices.series import describe_series

Keys = pytest.importorskip("selenium.webdriver.common.keys", reason="no selenium").Keys
HOSTILE = "P<img src=x onerror=alert(1)>"
SIDE = 128
AMBER = "rgba(255, 241, 214, 1)"
SLICES = 14
UNREAD = 5  # of the first study's chosen series
PEAK = 9
OBLIQUE = [np.cos(0.7), np.sin(0.7), 0, -np.sin(0.7), np.cos(0.7), 0]


def draw_ramp(number):
    """A slice of every HU from −1000 to 1400, brighter from left to right, and a mark by number."""
    stored = np.tile(np.linspace(-1000, 1400, SIDE).round().astype(np.int16), (SIDE, 1))
    stored[:4, :4] = -1000
    stored[10:20, 10 + 2 * number : 12 + 2 * number] = 60
    return stored


def write_series(folder, patient, study, number, description, slices=SLICES, **tags):
    """Write a series, whose InstanceNumbers fall from feet to head."""
    for place in range(slices):
        own = {
            "PatientID": patient,
            "StudyInstanceUID": study,
            "SeriesInstanceUID": f"{study}.{number}",
            "SOPInstanceUID": f"{study}.{number}.{place}",
            "SeriesDescription": description,
            "StudyDescription": f"after a fall <{patient[:4]}>",
            "ImagePositionPatient": [0, 0, 5 * place],
            "InstanceNumber": slices - place,
            "PixelSpacing": [1.5, 1.5],
            "SliceThickness": 5,
            "ConvolutionKernel": "H31s",
            **tags,
        }
        path = folder / f"{study}.{number}.{place}.dcm"
        write = (
            write_cut_short if (number, place, patient) == (1, UNREAD, "HEAD-1") else write_slice
        )
        write(path, stored=draw_ramp(place), **own)


@pytest.fixture(scope="module")
def scans(tmp_path_factory, small_run):
    """A page of two studies with made probabilities: the page, and the tables it was made from."""
    folder = tmp_path_factory.mktemp("reader")
    scans = folder / "scans"
    write_series(scans, "HEAD-1", "1.1", 1, "Head 5.0")
    feet_first = [-1, 0, 0, 0, 1, 0]
    bone = {"ConvolutionKernel": "H60s", "ImageOrientationPatient": feet_first}
    write_series(scans, "HEAD-1", "1.1", 2, "Head bone", slices=12, **bone)
    coronal = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    write_series(scans, "HEAD-1", "1.1", 3, "Head cor", slices=3, **coronal)
    write_series(scans, HOSTILE, "1.2", 1, "Head oblique", ImageOrientationPatient=OBLIQUE)
    slices, skipped = index_slices(scans)
    table = slices.assign(averaged=1)
    places = table["ImagePositionPatient"].str.split("\\", regex=False).str[-1].astype(float) / 5
    for shift, label in enumerate(LABELS):
        offset = (places - PEAK + (5 - shift)).abs()
        table[label] = 0.9 * np.exp(-offset / 3) * np.where(table["PatientID"] == "HEAD-1", 1, 0.3)
    table.loc[table["SeriesInstanceUID"] == "1.1.2", list(LABELS)] *= 0.9
    table[name_columns("classifier")] = table[list(LABELS)].to_numpy()
    model = load_model(small_run.path)
    found = Predictions(table, None, describe_series(slices, skipped), skipped, model, 1.0)
    page = write_scan_report(found, folder / "page.html", next(iter(model.members)))
    return SimpleNamespace(page=page, table=table, skipped=skipped, found=found, model=model)


@pytest.fixture
def opened(browser, scans):
    """The page, freshly opened at a desktop's width; the pointer is anywhere."""
    browser.set_window_size(1440, 1000)
    browser.get("about:blank")
    browser.get(scans.page.as_uri())
    settle(browser)
    yield browser
    assert browser.get_log("browser") == []


def settle(browser):
    """Wait until the slice that was asked for is drawn, or what stands in its place."""
    for _ in range(100):
        if find(browser, "#view").get_attribute("aria-busy") == "false":
            return
        time.sleep(0.05)
    raise AssertionError("no slice was drawn")


def state(browser, name):
    return browser.execute_script(f"return state.{name}")


def focus(browser):
    browser.execute_script("byId('view').scrollIntoView({block: 'center', behavior: 'instant'})")
    browser.execute_script("byId('view').focus({preventScroll: true})")


def place(browser, right=0.5, down=0.5, of="#view"):
    """The point of an element at these shares of its width and height, in the window."""
    focus(browser)
    box = browser.execute_script("return arguments[0].getBoundingClientRect()", find(browser, of))
    return box["left"] + right * box["width"], box["top"] + down * box["height"]


def send(browser, kind, point, **more):
    given = {"type": kind, "x": point[0], "y": point[1], **more}
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", given)


def drag(browser, start, end, button="left", modifiers=0):
    held = {"button": button, "modifiers": modifiers, "clickCount": 1}
    buttons = {"left": 1, "right": 2, "middle": 4}[button]
    send(browser, "mousePressed", start, buttons=buttons, **held)
    send(browser, "mouseMoved", end, buttons=buttons, **held)
    send(browser, "mouseReleased", end, buttons=0, **held)


def roll(browser, size, times=1, modifiers=0, point=None):
    for _ in range(times):
        given = {"deltaX": 0, "deltaY": size, "modifiers": modifiers}
        send(browser, "mouseWheel", point or place(browser), **given)


def touch(browser, *steps):
    """Each step is a list of the fingers' points; then all are lifted."""
    for number, points in enumerate(steps):
        kind = "touchStart" if number == 0 else "touchMove"
        fingers = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(points)]
        given = {"type": kind, "touchPoints": fingers}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", given)
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_the_wheel_moves_slices_and_not_the_page(opened):
    focus(opened)
    press(opened, Keys.HOME)
    top = opened.execute_script("return scrollY")
    roll(opened, -120)
    assert slice_number(opened) == 1  # up is towards the vertex, a notch is one
    roll(opened, -60, times=2)
    assert slice_number(opened) == 3
    roll(opened, 120)
    assert slice_number(opened) == 2
    roll(opened, -10, times=2)  # a trackpad's steps add up to 30
    assert slice_number(opened) == 2
    roll(opened, -10)
    assert slice_number(opened) == 3
    roll(opened, 120, times=9)
    assert slice_number(opened) == 0
    assert opened.execute_script("return scrollY") == top
    roll(opened, 120, point=place(opened, of="#chart"))
    time.sleep(0.3)
    assert opened.execute_script("return scrollY") > top  # elsewhere the page scrolls


def test_a_left_drag_sets_the_window_right_wider_and_down_darker(opened):
    middle = place(opened)
    drag(opened, middle, (middle[0] + 64, middle[1]))
    assert state(opened, "width") > 80
    assert state(opened, "center") == 40
    width = state(opened, "width")
    drag(opened, middle, (middle[0], middle[1] + 64))
    assert state(opened, "center") > 40  # a higher center is darker
    assert state(opened, "width") == width
    drag(opened, middle, (middle[0] - 600, middle[1]))
    assert state(opened, "width") == 1
    assert find(opened, "#preset").get_attribute("value") == "free"


def test_buttons_choose_whether_a_drag_moves_slices_or_the_image(opened):
    middle, before = place(opened), slice_number(opened)
    find(opened, "[data-mode=slices]").click()
    drag(opened, middle, (middle[0], middle[1] - 45))
    assert slice_number(opened) > before
    find(opened, "[data-mode=move]").click()
    find(opened, "[aria-label='Zoom in']").click()
    drag(opened, middle, (middle[0] + 30, middle[1] + 20))
    assert state(opened, "x") < 0
    assert state(opened, "y") < 0
    assert (state(opened, "center"), state(opened, "width")) == (40, 80)
    find(opened, "[data-mode=window]").click()
    pressed = find_all(opened, "[data-mode][aria-pressed=true]")
    assert [one.get_attribute("data-mode") for one in pressed] == ["window"]


def test_a_right_drag_and_the_wheel_with_control_zoom_between_1_and_8(opened):
    middle = place(opened)
    drag(opened, middle, (middle[0], middle[1] - 100), button="right")
    zoom = state(opened, "zoom")
    assert 1 < zoom < 8
    assert (state(opened, "x"), state(opened, "y")) == (0, 0)  # about the centre
    roll(opened, 5000, modifiers=2)
    assert state(opened, "zoom") == 1
    corner = place(opened, 0.9, 0.1)
    roll(opened, -5000, modifiers=2, point=corner)
    assert state(opened, "zoom") == 8
    # What was under the pointer stays there: 0.4 of the image right of its middle.
    assert state(opened, "x") + 0.4 / 8 == pytest.approx(0.4, abs=0.005)
    assert state(opened, "y") - 0.4 / 8 == pytest.approx(-0.4, abs=0.005)


def test_the_browsers_menu_stays_where_nothing_was_dragged(opened):
    def is_menu_kept():
        """Whether the menu comes up when the right button has been released, as on Windows."""
        return opened.execute_script(
            "return byId('view').dispatchEvent(new Event('contextmenu', { cancelable: true }))"
        )

    middle = place(opened)
    drag(opened, middle, middle, button="right")
    assert is_menu_kept()
    drag(opened, middle, (middle[0], middle[1] - 100), button="right")
    assert not is_menu_kept()
    # Elsewhere it comes up at the press: it would stop every drag.
    send(opened, "mousePressed", middle, button="right", buttons=2, clickCount=1)
    assert not is_menu_kept()
    send(opened, "mouseReleased", middle, button="right", buttons=0, clickCount=1)
    assert is_menu_kept()


def test_two_fingers_zoom_one_moves_slices_sideways_and_the_page_scrolls(browser, scans):
    browser.get(scans.page.as_uri())
    with as_phone(browser):
        settle(browser)
        browser.execute_script("setMode('slices')")
        middle, before = place(browser), slice_number(browser)
        touch(browser, [middle], [(middle[0] + 20, middle[1])], [(middle[0] + 40, middle[1])])
        assert slice_number(browser) > before
        assert (
            browser.execute_script("return getComputedStyle(byId('view')).touchAction") == "pan-y"
        )
        apart = [[(middle[0] - by, middle[1]), (middle[0] + by, middle[1])] for by in (30, 60, 90)]
        touch(browser, *apart)
        assert state(browser, "zoom") > 1.2
        browser.execute_script("resetView(); setMode('window')")
        touch(browser, [middle], [(middle[0] + 20, middle[1])], [(middle[0] + 40, middle[1])])
        assert state(browser, "width") > 80
        assert touch_action(browser) == "none"


def touch_action(browser):
    return browser.execute_script("return getComputedStyle(byId('view')).touchAction")


def test_shift_and_the_middle_button_move_the_zoomed_image(opened):
    middle = place(opened)
    opened.execute_script("zoomBy(2)")
    drag(opened, middle, (middle[0] - 50, middle[1]), modifiers=8)
    assert state(opened, "x") > 0
    drag(opened, middle, (middle[0] + 50, middle[1] + 3000), button="middle")
    assert state(opened, "x") == pytest.approx(0, abs=0.005)
    assert state(opened, "y") == -0.25  # never past the image's edge
    assert (state(opened, "center"), state(opened, "width")) == (40, 80)


@pytest.mark.parametrize("by", ["0", "double click"])
def test_zero_and_a_double_click_show_the_whole_image_in_the_brain_window(opened, by):
    opened.execute_script("zoomBy(3); setWindow(500, 1000)")
    point = place(opened)
    if by == "0":
        press(opened, "0")
    else:
        for count in (1, 2):
            held = {"button": "left", "clickCount": count}
            send(opened, "mousePressed", point, **held)
            send(opened, "mouseReleased", point, **held)
    assert [state(opened, name) for name in ("zoom", "x", "y")] == [1, 0, 0]
    assert [state(opened, name) for name in ("center", "width")] == [40, 80]


def test_keys_move_slices_while_the_image_or_the_slider_has_the_focus(opened):
    focus(opened)
    expected = [
        (Keys.HOME, 0), (Keys.ARROW_UP, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_DOWN, 1),
        (Keys.PAGE_UP, 6), (Keys.ARROW_LEFT, 5), (Keys.PAGE_DOWN, 0), (Keys.END, SLICES - 1),
        ("k", PEAK),
    ]  # fmt: skip
    for key, number in expected:
        press(opened, key)
        assert slice_number(opened) == number
    slider = find(opened, "#slider")
    slider.send_keys(Keys.HOME)
    slider.send_keys(Keys.ARROW_RIGHT)
    assert slice_number(opened) == 1
    find(opened, "[aria-label='Next slice']").click()
    find(opened, "[aria-label='Next slice']").click()
    find(opened, "[aria-label='Previous slice']").click()
    assert slice_number(opened) == 2
    view = find(opened, "#view")
    assert view.get_attribute("aria-valuenow") == "3"
    assert view.get_attribute("aria-valuemax") == str(SLICES)
    assert "10 mm" in view.get_attribute("aria-valuetext")


def test_letters_and_digits_act_with_the_focus_in_the_image_alone(opened):
    focus(opened)
    windows = (40, 80), (80, 200), (40, 380), (40, 40), (600, 2800)
    for number, window in enumerate(windows, 1):
        press(opened, str(number))
        assert (state(opened, "center"), state(opened, "width")) == window
    press(opened, "+")
    assert state(opened, "zoom") == 1.25
    press(opened, "-")
    assert state(opened, "zoom") == 1
    press(opened, "l")
    assert state(opened, "label") == LABELS.index("epidural")
    assert find(opened, "#overlay").is_selected() is False  # off at first
    press(opened, "o")
    assert find(opened, "#overlay").is_selected()
    assert state(opened, "overlay")
    press(opened, "]")
    assert (
        find_all(opened, "#found [aria-current=true]")[0].get_attribute("title").endswith("1.1.2")
    )
    press(opened, "[")
    assert (
        find_all(opened, "#found [aria-current=true]")[0].get_attribute("title").endswith("1.1.1")
    )
    press(opened, "?")
    assert find(opened, "#keys").get_attribute("open") is not None
    find(opened, "#keys button").click()
    opened.execute_script("byId('find').focus()")
    press(opened, "5k]")
    assert find(opened, "#find").get_attribute("value") == "5k]"
    assert (state(opened, "center"), state(opened, "width")) == (600, 2800)
    assert state(opened, "series") == 0


def test_windows_are_set_without_dragging(opened):
    for box, value in (("#center", "55"), ("#width", "150")):
        field = find(opened, box)
        field.clear()  # an empty field changes nothing
        assert field.get_attribute("value") in ("40", "80")
        field.send_keys(Keys.CONTROL, "a", Keys.NULL, value, Keys.ENTER)
    assert [state(opened, name) for name in ("center", "width")] == [55, 150]
    assert find(opened, "#tr").text.endswith("C 55 W 150")
    find(opened, "#preset option[value='1']").click()
    assert [state(opened, name) for name in ("center", "width")] == [80, 200]
    find(opened, "[aria-label='Zoom in']").click()
    assert "zoom 1.25" in find(opened, "#tr").text
    opened.find_element("xpath", "//button[text()='fit']").click()
    assert state(opened, "zoom") == 1


def test_hovering_over_the_curves_does_nothing_a_click_and_a_drag_move(opened):
    focus(opened)
    press(opened, Keys.HOME)
    plot, box = find(opened, "#chart svg"), "const r = arguments[0].getBoundingClientRect(); "
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    left, top, width = opened.execute_script(box + "return [r.left, r.top, r.width]", plot)
    send(opened, "mouseMoved", (left + width / 2, top + 60), button="none", buttons=0)
    assert slice_number(opened) == 0
    drag(opened, (left + width / 2, top + 60), (left + width - 12, top + 60))
    assert slice_number(opened) == SLICES - 1
    cursor = float(find(opened, "#cursor").get_attribute("x1"))
    assert cursor == pytest.approx(opened.execute_script("return scales.toX(65)"), abs=0.5)


def test_a_probability_opens_its_labels_highest_slice_a_picture_that_of_any(opened):
    for label in ("subdural", "epidural"):
        cell = find(opened, f"#studies-body tr[data-study='0'] td[data-label={label}]")
        number = cell.find_element("css selector", "button")
        assert number.text == ".900"
        opened.execute_script("arguments[0].click()", number)
        assert state(opened, "label") == LABELS.index(label)
        assert slice_number(opened) == PEAK - 5 + LABELS.index(label)
        assert opened.execute_script("return document.activeElement.id") == "view"
    opened.execute_script("arguments[0].click()", find(opened, ".thumbnail"))
    assert slice_number(opened) == PEAK
    names = find_all(opened, "#studies-body th button")
    opened.execute_script("arguments[0].click()", names[1])
    assert find(opened, "#series-name").text.startswith(HOSTILE)


def test_the_studies_are_sorted_searched_and_say_why_a_series_was_chosen(opened):
    def names():
        return [one.text for one in find_all(opened, "#studies-body th button")]

    assert names() == ["HEAD-1", HOSTILE]
    find(opened, "[data-sort='5']").click()
    assert names() == [HOSTILE, "HEAD-1"]
    find(opened, "[data-sort='study']").click()
    assert names() == ["HEAD-1", HOSTILE]
    rows = [row.text for row in find_all(opened, "#studies-body tr")]
    assert "No label reaches 0.5 on any slice" in rows[1]
    for text in ("Head 5.0", "no bone kernel", "1 slice could not be scored"):
        assert text in rows[0]
    assert "1 more series scored, 1 left out" in rows[0]
    find(opened, "#find").send_keys("head-1")
    assert names() == ["HEAD-1"]
    find(opened, "#find").send_keys("xyz")
    assert "No study has this in its name" in find(opened, "#studies-body").text


def test_the_list_of_series_has_warnings_and_what_was_left_out(opened):
    cards = [card.text for card in find_all(opened, "#found > li")]
    assert "chosen" in cards[0]
    assert "axial · H31s · 5 mm thick, every 5 mm · 13 slices" in cards[0]
    assert "bone kernel" in cards[1]
    assert "left out: plane is not axial" in cards[2]
    assert len(cards) == 3


def test_the_skip_link_is_the_first_stop_and_leads_to_the_slices(opened):
    opened.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    press(opened, Keys.TAB)
    assert opened.execute_script("return document.activeElement.id") == "skip"
    press(opened, Keys.ENTER)
    assert opened.execute_script("return document.activeElement.id") == "view"
    assert opened.execute_script("return location.hash") == ""
    press(opened, Keys.HOME)
    assert slice_number(opened) == 0


def test_the_address_follows_and_back_returns_to_the_series_before(opened, scans):
    assert urlsplit(opened.current_url).fragment == ""
    focus(opened)
    press(opened, Keys.HOME)
    time.sleep(0.4)
    named = parse_qs(urlsplit(opened.current_url).fragment)
    assert named == {"study": ["1.1"], "series": ["1.1.1"], "slice": ["1"]}
    length = opened.execute_script("return history.length")
    press(opened, Keys.ARROW_UP)
    time.sleep(0.4)
    assert opened.execute_script("return history.length") == length  # replaced
    press(opened, "]")
    assert opened.execute_script("return history.length") == length + 1
    assert "series=1.1.2" in opened.current_url
    opened.back()
    time.sleep(0.3)
    assert state(opened, "series") == 0
    assert slice_number(opened) == 1


@pytest.mark.parametrize(
    ("fragment", "series", "number"),
    [
        ("study=1.1&series=1.1.2&slice=3", 1, 2),
        ("series=1.1.2&slice=1.1.2.7", 1, 7),  # a SOPInstanceUID, as kit evaluate writes it
        ("study=HEAD-1", 0, PEAK),
        ("study=1.1&label=subdural", 0, PEAK - 1),
        ("study=1.2&series=1.2.1", 2, PEAK),
    ],
)
def test_a_link_opens_study_series_and_slice(browser, scans, fragment, series, number):
    browser.get("about:blank")
    browser.get(f"{scans.page.as_uri()}#{fragment}")
    assert state(browser, "series") == series
    assert slice_number(browser) == number
    assert browser.execute_script("return document.activeElement.id") == "view"
    assert find(browser, "#address").text == ""


@pytest.mark.parametrize("fragment", ["study=9.9", "series=9.9", "study=1.2&series=1.1.1"])
def test_a_link_that_names_nothing_here_says_so(browser, scans, fragment):
    browser.get("about:blank")
    browser.get(f"{scans.page.as_uri()}#{fragment}")
    assert "This page does not draw the" in find(browser, "#address").text
    assert slice_number(browser) == PEAK


def test_identifiers_and_a_link_are_copied(opened):
    opened.execute_script(
        "window.copied = []; navigator.clipboard.writeText = async (text) => { copied.push(text); }"
    )
    for name in ("InstanceNumber", "SOPInstanceUID", "SeriesInstanceUID", "link"):
        button = find(opened, f"[aria-label='Copy {name}']")
        opened.execute_script("arguments[0].click()", button)
    focus(opened)
    press(opened, "c")
    *ids, link, again = opened.execute_script("return copied")
    assert ids == [str(SLICES - PEAK), f"1.1.1.{PEAK}", "1.1.1"]
    assert link == again
    assert parse_qs(urlsplit(link).fragment)["slice"] == [str(PEAK + 1)]
    assert find(opened, "#said").text == "link copied"


@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ("series=1.1.1", ["R", "L", "A", "P"]),
        ("series=1.1.2", ["L", "R", "A", "P"]),  # feet first
        ("study=1.2", ["RA", "LP", "AL", "PR"]),  # turned by 40°
    ],
)
def test_letters_stand_at_the_edges_they_name(browser, scans, fragment, expected):
    browser.get("about:blank")
    browser.get(f"{scans.page.as_uri()}#{fragment}")
    settle(browser)
    assert [find(browser, f"#{place}").text for place in ("lw", "le", "ln", "ls")] == expected
    view = find(browser, "#view").rect
    boxes = {place: find(browser, f"#{place}").rect for place in ("lw", "le", "ln", "ls")}
    assert boxes["lw"]["x"] - view["x"] < 20
    assert boxes["le"]["x"] - view["x"] > view["width"] - 50
    assert boxes["ln"]["y"] - view["y"] < 20
    assert boxes["ls"]["y"] - view["y"] > view["height"] - 50


def test_a_slice_that_was_not_scored_says_why_and_has_a_gap(opened, scans):
    opened.execute_script(f"moveTo({UNREAD})")
    settle(opened)
    assert "pixel data is cut short" in find(opened, "#state").text
    assert "It has no probabilities" in find(opened, "#state").text
    assert {bar.text for bar in find_all(opened, "#bars .value")} == {"–"}
    assert not any(find(opened, f"#{place}").is_displayed() for place in ("lw", "le", "ln", "ls"))
    assert not find(opened, "#strip").is_displayed()
    assert not find(opened, "#overlay").is_enabled()
    curve = find(opened, "#chart path[data-name=any]").get_attribute("d")
    assert curve.count("M") == 2
    assert "×" in find(opened, "#chart").text
    assert f"instance {SLICES - UNREAD}" in find(opened, "#bl").text
    focus(opened)
    press(opened, Keys.ARROW_UP)
    settle(opened)
    assert find(opened, "#strip").is_displayed()


def test_a_damaged_image_is_told(opened):
    opened.execute_script(
        "decoded.clear(); lines.get(0)[3] = lines.get(0)[3].slice(0, 40); moveTo(3)"
    )
    settle(opened)
    assert "This image is damaged" in find(opened, "#state").text


def read_canvas(browser, script):
    """The green of a canvas that `script` returns, (side, side)."""
    values = browser.execute_script(
        f"const c = {script}, copy = make('canvas', {{ width: c.width, height: c.width }}),"
        "brush = copy.getContext('2d', { willReadFrequently: true }); brush.drawImage(c, 0, 0);"
        "return [...brush.getImageData(0, 0, c.width, c.width).data.filter((_, i) => i % 4 === 1)]"
    )
    side = round(len(values) ** 0.5)
    return np.array(values).reshape(side, side)


@pytest.mark.parametrize("window", [(40, 80), (80, 200), (40, 380), (40, 40), (600, 2800), (7, 33)])
def test_windows_in_the_browser_are_numpys_within_the_encodings_error(opened, scans, window):
    center, width = window
    row = scans.table[scans.table["SOPInstanceUID"] == f"1.1.1.{PEAK}"].iloc[0]
    hounsfield = read_hounsfield(row["path"]).astype(float)
    expected = 255 * np.clip((hounsfield - center) / width + 0.5, 0, 1)
    shade = f"shade(shown.slice, {center}, {width}, blank())"
    found = read_canvas(opened, shade)
    assert found.shape == (SIDE, SIDE)
    # Of the very levels that the page holds, the window is NumPy's to a gray level.
    levels = decode_image(read_images(scans.page)[0][PEAK])
    windowed = 255 * np.clip((restore_hounsfield(levels) - center) / width + 0.5, 0, 1)
    assert np.abs(found - windowed).max() <= 1
    # Of the file, where it is neither black nor white, to the encoding's error: 4 HU, or a level.
    seen = (expected > 0) & (expected < 255)
    error = 4 if width <= 200 else 8 if width <= 380 else 50
    assert seen.sum() >= 2 * SIDE
    assert np.abs(found - expected)[seen].mean() <= 255 * error / width


def test_no_hounsfield_unit_is_lost_but_by_the_encoding(opened):
    """The browser's 256 values are those of the bent line."""
    from kit.report.pixels import POINTS

    points, levels = zip(*POINTS, strict=True)
    found = opened.execute_script("return [...shade.hounsfield]")
    np.testing.assert_allclose(found, np.interp(np.arange(256), levels, points), rtol=1e-6)


def test_the_overlay_is_off_at_first_and_lies_where_the_model_looked(opened):
    plain = read_canvas(opened, "byId('canvas')")
    opened.execute_script(
        "const m = theSeries().maps, size = m.shape[0] * m.shape[1];"
        "m.values = new Uint8Array(atob(m.bytes).length);"
        "const first = (state.slice * 6 + state.label) * size;"
        "m.values.fill(255, first, first + size);"
        "m.views[state.slice] = [0.25, 0.5, 0.5, 0.25]; byId('overlay').click()"
    )
    changed = read_canvas(opened, "byId('canvas')") != plain
    side = len(changed)
    rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
    assert rows[0] == pytest.approx(side / 2, abs=3)
    assert rows[-1] == pytest.approx(side * 0.75, abs=3)
    assert columns[0] == pytest.approx(side / 4, abs=3)
    assert columns[-1] == pytest.approx(side * 0.75, abs=3)
    assert "not where blood is" in find(opened, "#reader").text


def test_the_bar_of_millimetres_has_their_length(opened):
    view = find(opened, "#view").rect["width"]
    rule = find(opened, "#br .rule").rect["width"]
    assert find(opened, "#br").text == "50 mm"
    assert rule == pytest.approx(50 / (1.5 * SIDE) * view, abs=1)
    opened.execute_script("zoomBy(4)")
    assert find(opened, "#br").text == "10 mm"
    assert find(opened, "#br .rule").rect["width"] == pytest.approx(4 * rule / 5, abs=1)


@pytest.mark.parametrize("wide", [320, 390, 768, 1024, 1245, 1280, 1440, 1920])
def test_no_width_needs_sideways_scrolling(opened, wide):
    size = {"width": wide, "height": 900, "deviceScaleFactor": 1, "mobile": wide < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened.refresh()
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") <= wide + 1
        view = find(opened, "#view").rect
        assert view["width"] == pytest.approx(view["height"], abs=1)
        series = find(opened, "#studies-body td:nth-child(2)")
        assert series.rect["width"] >= 160  # not a letter a line
        assert all(one.rect["height"] < 30 for one in find_all(opened, "#studies-body .number"))
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_on_a_phone_the_controls_are_large_and_the_limits_are_not_folded(browser, scans):
    browser.get(scans.page.as_uri())
    with as_phone(browser):
        settle(browser)
        for control in find_all(browser, ".tools .button, .tools select, .slider .button"):
            assert control.rect["height"] >= 44
        assert find(browser, "#view").rect["width"] == 390
        assert not find(browser, "#strip").is_displayed()
        assert "Licence: not stated" in find(browser, "#model summary").text
        assert not find(browser, "#model dl").is_displayed()
        assert "does not exclude hemorrhage" in find(browser, "#model").text


def test_synthetic_weights_are_marked_everywhere(opened):
    assert "synthetic" in find(opened, "#alarm").text
    # First of all, below the title's line alone.
    assert find(opened, "main > :first-child > :first-child") == find(opened, "#alarm")
    assert find(opened, "#alarm").rect["y"] < 120
    assert find(opened, "#model").get_attribute("class") == "synthetic"
    assert len(find_all(opened, "#studies .flag")) == 2
    assert find(opened, "#reader .flag").is_displayed()
    assert find(opened, "#tr").text.startswith("synthetic weights")
    wait_for_sheets(opened)
    assert len(find_all(opened, ".sheet .alarm")) == len(find_all(opened, ".sheet")) == 3


def test_weights_of_which_nothing_is_recorded_are_amber(browser, scans, tmp_path):
    text = scans.page.read_text(encoding="utf-8")
    said = f'"warning":"{SYNTHETIC}","unknown":null'
    assert said in text
    page = tmp_path / "page.html"
    other = f'"warning":null,"unknown":"{UNRECORDED}"'
    page.write_text(text.replace(said, other), encoding="utf-8")
    browser.set_window_size(1440, 1000)
    browser.get(page.as_uri())
    settle(browser)
    assert find(browser, "main > :first-child > :first-child").text == UNRECORDED
    assert find(browser, "#model").get_attribute("class") == "unknown"
    assert find(browser, "#model").value_of_css_property("background-color") == AMBER
    assert not find_all(browser, ".flag, .alarm")
    wait_for_sheets(browser)
    assert len(find_all(browser, ".sheet .unrecorded")) == 3


def test_a_study_shows_its_description_as_text(opened):
    shown = [row.text for row in find_all(opened, "#studies tbody th small")]
    assert sorted(shown) == ["after a fall <HEAD>", "after a fall <P<im>"]


def wait_for_sheets(browser):
    for _ in range(100):
        if find_all(browser, ".sheet"):
            return
        time.sleep(0.05)


def test_a_printed_study_takes_one_sheet_and_is_light(opened, scans):
    wait_for_sheets(opened)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not find(opened, "#main").is_displayed()
        overview, first, second = (sheet.text for sheet in find_all(opened, ".sheet"))
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert "2 studies" in overview
    assert "Not a medical device" in overview
    assert f"Slice {PEAK + 1} of {SLICES}, the highest of any (.900)" in first
    assert f"1.1.1.{PEAK}" in first
    assert "left out: plane is not axial" in first
    assert "This does not exclude hemorrhage" in second
    given = {"preferCSSPageSize": True, "printBackground": True}
    printed = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", given)["data"])
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") == 3
    figures = opened.execute_script(
        "return [...document.querySelectorAll('.sheet .figures')].map((one) => one.children.length)"
    )
    assert figures == [3, 3]


def test_a_page_of_30_series_of_40_slices_parses_none_of_its_images_at_first(browser, scans):
    """What makes such a page open in under a second: images outside the JSON, decoded on demand."""
    browser.get("about:blank")
    browser.get(scans.page.as_uri())
    settle(browser)
    data = browser.execute_script("return byId('data').textContent.length")
    images = browser.execute_script(
        "return [...document.querySelectorAll('[id^=px-]')].map((one) => one.textContent.length)"
    )
    assert len(images) == 3
    assert sum(images) > 3 * data - 3 * 80_000
    split, kept = browser.execute_script("return [[...lines.keys()], decoded.size]")
    assert 0 in split
    assert kept <= 1 + 5 + 2 + 2  # the slice, those around it, the studies' pictures and sheets
    browser.execute_script(
        "for (let n = 0; n < 200; n += 1) decoded.set(`x${n}`, 0); return decode(0, 0)"
    )
    browser.execute_script("decoded.clear()")


def test_a_page_that_is_too_large_becomes_a_page_a_study(browser, scans, tmp_path, monkeypatch):
    monkeypatch.setattr("kit.report.scans_page.IMAGE_CHARACTERS", 1)
    weights = next(iter(scans.model.members))
    page = write_scan_report(scans.found, tmp_path / "scans.html", weights)
    parts = sorted(path.name for path in (tmp_path / "scans.studies").iterdir())
    assert parts == ["1.html", "2.html"]
    browser.get(page.as_uri())
    assert len(find_all(browser, "#studies-body tr")) == 2
    assert find_all(browser, "#reader") == []
    browser.get("about:blank")
    browser.get(f"{page.as_uri()}#series=1.1.2&slice=3")  # as kit evaluate links to a series
    time.sleep(0.5)
    assert browser.current_url.split("#")[0].endswith("scans.studies/1.html")
    assert "series=1.1.2" in browser.current_url
    assert find(browser, "#series-name").text.startswith("HEAD-1")
    # The chosen series alone has images; the other has its numbers.
    assert "No image on this page" in find(browser, "#state").text
    assert find(browser, "#bars .value").text != "–"
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_bars_stand_out_in_both_schemes(browser, scans, scheme):
    browser.get(scans.page.as_uri())
    with as_phone(browser, scheme):
        settle(browser)
        pairs = browser.execute_script(
            """
            const color = (name) => {
              const element = document.createElement('i');
              document.body.append(element);
              element.style.color = `var(--${name})`;
              const found = getComputedStyle(element).color;
              element.remove();
              return found;
            };
            const text = [['ink', 'paper'], ['soft', 'paper'], ['soft', 'panel'],
              ['accent', 'paper'], ['on-accent', 'accent'], ['amber-ink', 'amber'],
              ['amber-ink', 'panel'], ['red-ink', 'red']];
            const graphics = [...LABELS.map((name) => [name, 'line']), ['edge', 'paper'],
              ['red-edge', 'paper']];
            return [text, graphics].map((kind) => kind.map(([a, b]) => [a, b, color(a), color(b)]));
            """
        )
    for least, kind in zip((4.5, 3), pairs, strict=True):
        for name, ground, one, other in kind:
            assert contrast(one, other) >= least, f"{name} on {ground}"


def test_tables_of_predictions_and_pages_tell_the_same(scans, opened):
    """One rounding: the number in the row is the maximum of the table's slices."""
    chosen = scans.table[scans.table["SeriesInstanceUID"] == "1.1.1"]
    for label in LABELS:
        cell = find(opened, f"#studies-body tr[data-study='0'] td[data-label={label}] button")
        assert float(cell.text) == pytest.approx(chosen[label].max(), abs=5e-4)
    assert pd.notna(chosen["any"]).all()
