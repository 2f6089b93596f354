"""check_served.py as a test; skipped where torch is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_fresh_random_models():
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    subprocess.run([sys.executable, Path(__file__).with_name("check_served.py"), "--seed", "1"], check=True)
