"""The pages in a real Chromium."""

import shutil

import pytest
from serving import BINARY, ROOT, serve

DEMO_MODEL = ROOT / "launch" / "demo-model"


@pytest.fixture(scope="session")
def url():
    if not BINARY.exists() or not (DEMO_MODEL / "model.safetensors").exists():
        pytest.skip("the program or the demo model's weights are not here")
    with serve(DEMO_MODEL, 2) as server:
        yield server.url


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser):
    """A fresh profile, in which nothing may go wrong unseen."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    opened = context.new_page()
    problems = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    outside = []
    opened.on("request", lambda request: outside.append(request.url))
    opened.problems, opened.requested = problems, outside
    yield opened
    context.close()
