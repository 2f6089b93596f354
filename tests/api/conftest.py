"""The API tests: real clients against `shoal serve` with the demo model on two ranks."""

import json

import pytest
from serving import BINARY, ROOT, serve

DEMO_MODEL = ROOT / "launch" / "demo-model"


def needs_demo_model():
    if not BINARY.exists():
        pytest.skip(f"{BINARY} is not built")
    if not (DEMO_MODEL / "model.safetensors").exists():
        pytest.skip("the demo model's weights are not here")


@pytest.fixture(scope="module")
def server():
    """The demo model, for all tests of a file."""
    needs_demo_model()
    with serve(DEMO_MODEL, 2) as running:
        yield running


@pytest.fixture(scope="session")
def puzzle():
    """A question the demo model knows how to think about."""
    needs_demo_model()
    return json.loads((DEMO_MODEL / "puzzles.jsonl").read_text().splitlines()[0])["prompt"]
