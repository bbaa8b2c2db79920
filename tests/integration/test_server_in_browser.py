"""The server's page in a real browser: it lists, asks, counts, and fits a telephone."""

import pytest

import rankfold
from rankfold.store.manifest import Manifest, TaskManifest
from rankfold.store.saved import open_adapter
from tests.support.adapters import save_adapter
from tests.support.browser import browser, playwright
from tests.support.live_server import CLOSED_KEYS, TEAM, engine_of, served
from tests.support.tiny_models import tiny_bert

__all__ = ["browser", "tiny_bert"]

_SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def server(tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    manifest = Manifest(TaskManifest("reviews", "classification", ("bad", "good")), max_length=32)
    saved = open_adapter(save_adapter(folder / "a", tiny_bert, "tlora")).with_manifest(manifest)
    with rankfold.AdapterStore(folder / "adapters.db") as store:
        for index in range(120):
            store.put(f"team/{index:03}", saved)
    with served(engine_of(tiny_bert, folder / "adapters.db"), CLOSED_KEYS) as server:
        yield server


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 380)])
def test_page_asks_an_adapter_and_shows_the_load(browser, server, scheme, width, tmp_path):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    page = context.new_page()
    addresses, complaints = [], []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    origin = f"http://127.0.0.1:{server.port}/"
    page.goto(origin)
    page.wait_for_selector("#state.bad:has-text('API key')")
    page.fill("#key", TEAM)
    page.press("#key", "Tab")
    page.wait_for_selector("#rows tr:nth-child(100)")
    page.click("#more")
    page.wait_for_selector("#rows tr:nth-child(120)")
    assert page.locator("#rows tr").count() == 120
    assert not page.is_visible("#more")
    page.click("text=Use >> nth=7")
    assert page.input_value("#model") == "team/007"
    requests = page.locator("#numbers div:nth-child(1) dd")
    before = int(requests.inner_text())
    page.fill("#text", "the film was good")
    page.click("text=Ask")
    page.wait_for_selector("#answer:has-text('probabilities')")
    page.fill("#model", "never")
    page.click("text=Ask")
    page.wait_for_selector("#answer.bad:has-text('does not exist')")
    page.wait_for_selector("#state:has-text('ready')")
    playwright.expect(requests).to_have_text(str(before + 2))  # without those of the page itself
    assert page.evaluate(_SIDEWAYS) <= 0
    assert complaints == []
    assert all(address.startswith(origin) for address in addresses)
    page.screenshot(path=tmp_path / f"{scheme}.png", full_page=False)
    context.close()
