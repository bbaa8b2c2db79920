"""The page in a real browser: it opens offline, draws, sorts, finds, prints and fits a telephone."""

import re
from dataclasses import replace

import pytest

from rankfold.bench.suites.saved_suite import save_suite
from rankfold.report.run_page import run_page
from rankfold.report.study import make_report
from rankfold.report.write import write_as_named
from rankfold.runs.record import ReducerInfo, ReducerPoint
from tests.support.browser import browser
from tests.support.records import fail, make_record
from tests.support.run_pages import PAGES
from tests.support.suites import a_suite, records_of

__all__ = ["browser"]

_FIND = "input[data-study=study-1]"
_ROWS = "#study-1-table tbody tr"
_SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Every chart has an SVG, in which marks have been drawn that one can see.
_DRAWN = """() => [...document.querySelectorAll(".chart")].map((chart) =>
    [...chart.querySelectorAll("svg [class*=mark-] path")].filter((mark) => {
        const { width, height } = mark.getBoundingClientRect();
        const isSeen = width + height > 1 && getComputedStyle(mark).opacity > 0;
        return isSeen && !mark.closest(".role-axis, .role-legend");
    }).length)"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    suite = a_suite()
    save_suite(suite, folder)
    lost = fail(make_record("lora_fa", task="mrpc", examples=120))
    records = [*records_of(suite), lost, _reduced(make_record("effilora", task="mrpc", examples=120))]
    write_as_named(make_report(records, folder), folder / "report.html", version="1.2.3")
    return folder / "report.html"


def _reduced(record):
    points = tuple(ReducerPoint(step, (0.5, -0.5), (step, step // 2)) for step in (10, 20, 30))
    return replace(record, reducer=ReducerInfo({"active_fraction": 0.5}, ("layer.0", "layer.1"), points))


class Opened:
    """The page, with what it asked the network for and what it complained about."""

    def __init__(self, browser, file, **settings):
        self.context = browser.new_context(offline=True, **settings)
        self.page = self.context.new_page()
        self.asked, self.complaints = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())
        charts = self.page.locator(".chart").count()
        self.page.wait_for_function(f"document.querySelectorAll('.chart svg').length === {charts}")


@pytest.fixture
def opened(browser, file):
    found = Opened(browser, file, viewport={"width": 1280, "height": 900})
    yield found
    found.context.close()


@pytest.fixture
def page(opened):
    return opened.page


def first_cells(page):
    return [text.strip() for text in page.locator(f"{_ROWS} th").all_inner_texts()]


def shown_rows(page):
    return page.locator(f"{_ROWS}:not([hidden])").count()


def test_page_opens_without_a_network_and_without_a_complaint(opened, file):
    assert opened.complaints == []
    assert [url for url in opened.asked if not url.startswith(("data:", "blob:"))] == [file.as_uri()]


def test_every_chart_is_drawn(page):
    marks = page.evaluate(_DRAWN)
    # Points twice, a knob, three curves, tuning; in the first study a heat map before its tuning.
    assert len(marks) == 6 + 2 + 6 + 1
    assert all(count > 0 for count in marks), marks


@pytest.mark.parametrize("how", ["click", "keyboard"])
def test_heading_sorts_by_its_column_and_says_so(page, how):
    heading = page.locator("#study-1-table thead th").nth(1)
    sorted_up: list[str] = []
    for direction in ("ascending", "descending"):
        if how == "click":
            heading.locator("button").click()
        else:
            heading.locator("button").focus()
            page.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == direction
        values = page.locator(f"{_ROWS} td:nth-child(2)").evaluate_all(
            "all => all.map((c) => c.dataset.sort)"
        )
        numbers = [float(value) for value in values if value]
        assert numbers == sorted(numbers, reverse=direction == "descending")
        assert values[-1] == ""  # what failed has no value and stays last
        sorted_up = sorted_up or first_cells(page)
    assert first_cells(page) != sorted_up
    assert page.locator("#study-1-table th[aria-sort=ascending]").count() == 0


def test_search_leaves_the_rows_and_runs_that_have_the_words(page):
    before = shown_rows(page)
    page.fill(_FIND, "relayed k=16")
    assert shown_rows(page) == 1
    assert page.locator("#study-1-section .runs > details:visible").count() == 4
    assert page.locator("#study-1-section .found").inner_text().startswith("1 of ")
    page.press(_FIND, "Escape")
    assert shown_rows(page) == before


def test_slash_leads_to_the_search(page):
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.dataset.study") == "study-1"
    page.keyboard.type("tlora/")
    assert page.input_value(_FIND) == "tlora/"
    page.locator("#study-2").scroll_into_view_if_needed()
    page.evaluate("document.activeElement.blur(); document.getElementById('study-2').scrollIntoView()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.dataset.study") == "study-2"


def test_verdict_opens_to_its_numbers(page):
    page.locator(".claims summary").first.click()
    assert page.locator(".claims table.numbers:visible tbody tr").count() == 2
    assert page.locator(".claims .interval .dot:visible").count() == 2


def test_method_that_is_unticked_leaves_the_charts(page):
    symbols = "#study-1-bytes svg .mark-symbol path"
    before = page.locator(symbols).count()
    page.locator("fieldset[data-study=study-1] input").first.uncheck(force=True)
    page.wait_for_function(f"document.querySelectorAll('{symbols}').length === {before - 1}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_can_be_read_on_their_ground(browser, file, scheme):
    opened = Opened(browser, file, color_scheme=scheme)
    for selector in ("h1", ".fine", ".verdict.contradicted", ".verdict.supported", ".verdict.not-run"):
        ink, ground = (
            opened.page.locator(where).first.evaluate(f"element => getComputedStyle(element).{which}")
            for where, which in ((selector, "color"), ("body", "backgroundColor"))
        )
        assert _contrast(ink, ground) >= 4.5, (selector, ink, ground)
    opened.context.close()


def _contrast(*colours):
    """Return the ratio of luminance of the Web Content Accessibility Guidelines."""
    light = sorted(
        _luminance([int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]) for colour in colours
    )
    return (light[1] + 0.05) / (light[0] + 0.05)


def _luminance(channels):
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("width", [380, 768])
def test_page_never_scrolls_sideways(browser, file, width):
    opened = Opened(browser, file, viewport={"width": width, "height": 800})
    opened.page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert opened.page.evaluate(_SIDEWAYS) <= 0
    opened.context.close()


def test_charts_that_were_drawn_for_the_screen_fit_on_paper(page):
    page.emulate_media(media="print")
    page.evaluate("document.body.style.width = '180mm'")  # paper, unlike a window, is not resized
    edge = page.locator("body").evaluate("body => body.getBoundingClientRect().right")
    ends = page.locator(".chart svg").evaluate_all(
        "all => all.map((svg) => svg.getBoundingClientRect().right)"
    )
    assert max(ends) <= edge + 1


def test_print_has_everything_and_closes_it_again(page):
    closed = page.locator("details:not([open])").count()
    assert closed > 0
    closed_now = "document.querySelectorAll('details:not([open])').length"
    page.evaluate(f"addEventListener('beforeprint', () => (window.left = {closed_now}))")
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert page.evaluate("window.left") == 0
    assert page.locator("details:not([open])").count() == closed


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [1200, 380])
def test_page_of_one_run_opens_offline_draws_and_never_scrolls_sideways(browser, tmp_path, name, width):
    make, examples = PAGES[name]
    file = tmp_path / "run.html"
    file.write_text(run_page(make(), examples(), version="1.2.3"), "utf-8")
    opened = Opened(browser, file, viewport={"width": width, "height": 900})
    opened.page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert opened.page.evaluate(_SIDEWAYS) <= 0
    assert opened.complaints == []
    assert [url for url in opened.asked if not url.startswith(("data:", "blob:"))] == [file.as_uri()]
    assert all(count > 0 for count in opened.page.evaluate(_DRAWN))
    edge = opened.page.locator("main").evaluate("main => main.getBoundingClientRect().right")
    parts = opened.page.locator(".chart svg, .examples > li, dl, .scroll")
    ends = parts.evaluate_all("all => all.map((each) => each.getBoundingClientRect().right)")
    assert max(ends) <= edge + 1
    opened.context.close()
