"""The page in a real browser, with answers that the tests make up."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from longrec.serving.web.page import main_page
from tests.browser import assert_fits, note_errors, open_browser

pytestmark = pytest.mark.slow
URL = "http://page.test"
START_MS = 1_700_000_000_000
DAY_MS = 86_400_000
LONG_ID = "#-9223372036854775807"
EXAMPLES = {
    "users": [{"user_id": "7", "history_length": 3}],
    "moment": START_MS,
    "candidates": ["11", "12", "13"],
    "text_ids": [],
}
HISTORY = {
    "user_known": True,
    "timestamps": [START_MS, START_MS + 3 * DAY_MS, START_MS + 90 * DAY_MS],
    "items": ["1", "2", "3"],
    "lanes": {"feature": "topic", "names": ["news", "sport"], "of": [0, 1, 0]},
    "kinds": {"feature": "action", "names": ["view", "like"], "of": [0, 0, 1], "choices": ["like"]},
}
RANKED = {
    "scores": {"label": [0.125, 0.5, 0.25]},
    "model_version": "v1",
    "user_known": True,
    "history_length": 3,
    "unknown_candidates": 0,
    "degraded": False,
}
EXPLAINED = {
    **RANKED,
    "attention": [
        {
            "layer": 0,
            "head": 0,
            "events": [{"row": 2, "item_id": 3, "timestamp": 0, "weight": 0.75}],
        },
    ],
}
PATHS = {
    "/page/examples": EXAMPLES,
    "/page/history": HISTORY,
    "/rank": RANKED,
    "/explain": EXPLAINED,
    "/page/whatif": {"scores": {"label": [0.25, 0.5, 0.2]}},
}
FOCUSED = """() => {
  const { id, textContent, tagName } = document.activeElement;
  const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
  const isSeen = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
  return [id || textContent.trim().slice(0, 20) || tagName, isSeen];
}"""


class FakeService:
    """Answers the requests of a page, and notes them.

    Args:
        page: of Playwright.
        answers: JSON by path; other paths have the answers of PATHS.
    """

    def __init__(self, page: Any, answers: dict[str, Any]) -> None:
        self.answers = {**PATHS, **answers}
        self.bodies: dict[str, list[str]] = {path: [] for path in PATHS}
        self.errors = note_errors(page)
        page.route(f"{URL}/**", self._answer)
        page.goto(URL)

    def _answer(self, route: Any) -> None:
        path = re.sub(r"\?.*", "", route.request.url.removeprefix(URL))
        if path == "/":
            page = main_page()
            headers = {"content-type": "text/html", "content-security-policy": page.policy}
            route.fulfill(body=page.html, headers=headers)
            return
        self.bodies[path].append(route.request.post_data or route.request.url)
        answer = self.answers[path]
        if callable(answer):
            answer(route)
        else:
            route.fulfill(json=answer)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.set_default_timeout(30_000)
    yield page
    page.close()


def load(page: Any, **answers: Any) -> FakeService:
    """Load the page; wait until an example is ranked."""
    paths = {f"/{name.replace('_', '/')}": answer for name, answer in answers.items()}
    service = FakeService(page, paths)
    page.wait_for_selector("#scores tr")
    return service


def texts(page: Any, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def test_the_page_ranks_an_example_when_it_loads(page: Any) -> None:
    service = load(page)
    (body,) = service.bodies["/rank"]
    expected = {"user_id": 7, "candidates": [11, 12, 13], "request_time": START_MS}
    assert json.loads(body) == expected
    assert texts(page, "#scores td:first-child") == ["12", "13", "11"]
    assert texts(page, "#scores .value") == ["0.5000", "0.2500", "0.1250"]
    widths = page.locator("#scores .bar").evaluate_all("bars => bars.map(bar => bar.style.width)")
    assert widths == ["100%", "50%", "25%"]
    assert texts(page, "#heads .track") == ["0\n0.50"]
    assert service.errors == []


@pytest.mark.parametrize("missing", ["users", "candidates"])
def test_without_examples_the_page_asks_for_ids(page: Any, missing: str) -> None:
    service = FakeService(page, {"/page/examples": {**EXAMPLES, missing: []}})
    page.get_by_text("There are no examples here").wait_for()
    assert service.bodies["/rank"] == []
    page.fill("#user", "8")
    page.fill("#candidates", "12")
    page.press("#candidates", "Enter")
    page.wait_for_selector("#scores tr")
    assert json.loads(service.bodies["/rank"][0])["candidates"] == [12]
    assert page.inner_text("#facts") == ""


def test_with_a_token_the_page_ranks_what_the_reader_wrote(page: Any) -> None:
    def refuse_without_token(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer secret":
            route.fulfill(json=EXAMPLES)
        else:
            route.fulfill(json={"error": "no token"}, status=401)

    service = FakeService(page, {"/page/examples": refuse_without_token})
    page.get_by_text("no token").wait_for()
    page.fill("#user", "5")
    page.fill("#token", "secret")
    page.press("#token", "Tab")
    page.wait_for_selector("#scores tr")
    assert json.loads(service.bodies["/rank"][0])["user_id"] == 5
    assert page.inner_text("#error") == ""


def test_a_late_answer_does_not_replace_a_later_one(page: Any) -> None:
    held = []

    def hold_first(route: Any) -> None:
        if "user_id=7" in route.request.url:
            held.append(route)
        else:
            route.fulfill(json={**HISTORY, "user_known": False})

    service = FakeService(page, {"/page/history": hold_first})
    page.wait_for_function("() => document.getElementById('user').value === '7'")
    page.fill("#user", "8")
    page.press("#user", "Enter")
    page.wait_for_selector("#scores tr")
    with contextlib.suppress(Exception):  # the page gave this request up
        held[0].fulfill(json=HISTORY)
    page.wait_for_timeout(200)
    assert "unknown user" in page.inner_text("#facts")
    assert page.inner_text("#error") == ""
    assert len(service.bodies["/rank"]) == 1
    assert page.get_attribute("#main", "aria-busy") is None


def test_every_colour_is_explained(page: Any) -> None:
    load(page)
    page.click("#add button")
    page.wait_for_selector("#change-legend")
    shown = "\n".join(texts(page, ".legend li"))
    assert texts(page, "#kinds li")[:3] == ["colour is action:", "view", "like"]
    for word in ("ring: attention", "score", "chosen", "attention", "higher", "lower"):
        assert word in shown
    colors = page.locator("#kinds i").evaluate_all(
        "keys => keys.map(key => getComputedStyle(key).backgroundColor)"
    )
    assert len(set(colors)) == 3


def test_events_without_a_category_have_one_colour_and_no_empty_name(page: Any) -> None:
    plain = {"feature": "", "names": [""], "of": [0, 0, 0]}
    load(page, page_history={**HISTORY, "lanes": plain, "kinds": {**plain, "choices": []}})
    assert texts(page, "#kinds li")[0] == "event"
    page.click("#scores tr:first-child")
    page.wait_for_selector("#events tr")
    assert texts(page, "#event-heads th")[1:] == ["time (UTC)", "item"]
    page.focus("#timeline")
    assert page.inner_text("#tip").splitlines() == [
        "2024-02-12 22:13 UTC",
        "item 3",
        "attention: 75 %",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_events_stand_out(browser: Any, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    load(page)
    colors = page.evaluate("() => COLORS")
    card = page.evaluate("() => getComputedStyle(document.body).getPropertyValue('--card')")
    for color in colors:
        assert contrast(color, card) >= 3, color
    page.close()


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, as WCAG defines it."""
    darker, lighter = sorted(map(luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    digits = color.strip().lstrip("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    channels = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_pointing_at_an_event_tells_what_it_is(page: Any) -> None:
    load(page)
    for row, event in enumerate(("item 1", "item 2", "item 3")):
        x, y = page.evaluate(
            f"""() => {{
              const {{ left, top }} = timeline.canvas.getBoundingClientRect();
              const {{ timestamps, lanes }} = timeline.history;
              const row = {row};
              return [left + timeline.x(timestamps[row]), top + timeline.y(lanes.of[row])];
            }}"""
        )
        page.mouse.move(x + 3, y + 3)
        tip = page.locator("#tip")
        assert event in tip.inner_text()
        box = tip.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 1000
    page.mouse.move(x, y - 60)
    assert not tip.is_visible()
    assert page.get_attribute("#scores .measure >> nth=0", "title") == "label: 0.5"


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(page: Any) -> None:
    load(page)
    page.evaluate("() => document.activeElement.blur()")
    stops = []
    while not stops or stops[-1][0] != "Add it":
        page.keyboard.press("Tab")
        stops.append(page.evaluate(FOCUSED))
        assert len(stops) < 20, stops
    names = [name for name, _ in stops]
    assert names[:7] == ["API", "user", "time", "length", "candidates", "show", "timeline"]
    assert names[7] == "12"  # the best candidate; one stop for the whole table
    assert names[-3:] == ["item", "kind", "Add it"]
    assert all(is_seen for _, is_seen in stops), stops


def test_candidates_are_chosen_by_keyboard(page: Any) -> None:
    service = load(page)
    page.focus("#scores button")
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("#events tr")
    assert json.loads(service.bodies["/explain"][0])["candidate"] == 13
    assert page.evaluate(FOCUSED)[0] == "13"
    assert page.locator("[aria-pressed=true]").all_inner_texts() == ["13"]
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    page.get_by_text("For item 12").wait_for()
    page.keyboard.press("End")
    assert page.evaluate(FOCUSED)[0] == "11"
    assert page.locator("#scores [tabindex='0']").all_inner_texts() == ["11"]
    assert len(service.bodies["/explain"]) == 2  # a key chooses once


def test_events_are_read_by_keyboard(page: Any) -> None:
    load(page)
    slider = page.get_by_role("slider", name="Events, oldest to newest")
    slider.focus()
    assert slider.get_attribute("aria-valuenow") == "3"
    for key, item in (
        ("ArrowLeft", "2"),
        ("Home", "1"),
        ("ArrowLeft", "1"),
        ("PageUp", "2"),
        ("End", "3"),
        ("ArrowRight", "3"),
    ):
        page.keyboard.press(key)
        assert f"item {item}," in slider.get_attribute("aria-valuetext")
        assert f"item {item}\n" in page.inner_text("#tip")
    page.set_viewport_size({"width": 500, "height": 900})  # drawn anew
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def test_roles_and_names_tell_what_things_are(page: Any) -> None:
    load(page)
    for role, name in (
        ("textbox", "candidates: item ids"),
        ("combobox", "user"),
        ("textbox", "request time"),
        ("textbox", "most recent events"),
        ("button", "Show and rank"),
        ("table", "Candidates"),
        ("columnheader", "item"),
        ("region", "Events that mattered"),
        ("combobox", "kind"),
    ):
        assert page.get_by_role(role, name=name).count() >= 1, (role, name)
    assert page.locator("#error").get_attribute("role") == "alert"
    for name in ("facts", "drawn", "ranked", "explained", "changed"):
        assert page.locator(f"#{name}").get_attribute("role") == "status"


@pytest.mark.parametrize("width", [320, 400, 900])
def test_nothing_scrolls_sideways_on_a_narrow_screen(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    candidates = [LONG_ID, "a-name-of-an-item-without-a-blank-in-it", "13"]
    scores = {f"a_long_name_of_task_{task}": [0.1, 0.2, 1e-9] for task in range(5)}
    lanes = {"feature": "category_of_items", "names": ["x" * 80, "sport"], "of": [0, 1, 0]}
    load(
        page,
        page_examples={**EXAMPLES, "candidates": candidates, "text_ids": ["item", "user"]},
        page_history={**HISTORY, "lanes": lanes, "items": [LONG_ID] * 3},
        rank={**RANKED, "scores": scores, "model_version": "v" * 60},
        page_whatif={"scores": scores},
    )
    page.click("#scores tr:first-child")
    page.wait_for_selector("#events tr")
    page.click("#add button")
    page.get_by_text("moves most").wait_for()
    page.focus("#timeline")
    assert_fits(page)
    title = page.evaluate("() => timeline.context.measureText(timeline.timeTitle()).width")
    assert title <= page.evaluate("() => timeline.canvas.clientWidth")


def test_an_empty_history_and_scores_of_zero(page: Any) -> None:
    nothing = {"feature": "topic", "names": [], "of": []}
    empty = {
        "user_known": False,
        "timestamps": [],
        "items": [],
        "lanes": nothing,
        "kinds": {**nothing, "choices": []},
    }
    service = load(
        page,
        page_history=empty,
        rank={**RANKED, "scores": {"label": [0, 0, 0]}},
        explain={**EXPLAINED, "attention": [{"layer": 0, "head": 0, "events": []}]},
    )
    assert page.inner_text("#drawn") == "no events"
    page.focus("#timeline")
    page.keyboard.press("ArrowLeft")
    assert not page.locator("#tip").is_visible()
    assert page.get_attribute("#timeline", "aria-valuetext") == "no events"
    page.click("#scores tr:first-child")
    page.get_by_text("there are no events").wait_for()
    assert service.errors == []


SPANS_MS = [0, 1, 50, 4_000, 90_000, 7_200_000, DAY_MS, 20 * DAY_MS, 400 * DAY_MS, 40_000 * DAY_MS]
TICKS = """([first, last, most]) => {
  const { times, format } = timeTicks(first, last, most);
  return [times, times.map(format)];
}"""


def test_the_time_axis_has_round_ticks(page: Any) -> None:
    load(page)
    first = START_MS + 12_345_678
    for span_ms in SPANS_MS:
        for most in (2, 9):
            last = first + span_ms
            times, labels = page.evaluate(TICKS, [first, last, most])
            assert times == sorted(set(times))
            assert all(first <= time <= last for time in times)
            assert len(labels) == len(set(labels)) <= most + 1
            assert len(times) >= 2 or most == 2 or span_ms == 0


def test_the_ticks_of_months_are_firsts_of_months(page: Any) -> None:
    load(page)
    assert page.get_attribute("#timeline", "data-ticks").split() == [
        "2023-11-23",
        "2023-12-07",
        "2023-12-21",
        "2024-01-04",
        "2024-01-18",
        "2024-02-01",
    ]
    _, labels = page.evaluate(TICKS, [START_MS, START_MS + 190 * DAY_MS, 8])
    assert labels == ["2023-12", "2024-01", "2024-02", "2024-03", "2024-04", "2024-05"]
