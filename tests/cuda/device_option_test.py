"""--device and --collectives where there is no GPU: the program starts, says why not, and exits as the contract says."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOAL = Path(os.environ.get("SHOAL_BUILD", ROOT / "build")) / "shoal"

pytestmark = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")


def run(*options):
    command = [SHOAL, "run", "--quiet", "--model", ROOT / "launch" / "demo-model", "--prompt", "What is 1 + 1?"]
    return subprocess.run([*command, "--max-tokens", "2", *options], capture_output=True, text=True, timeout=120)


def test_auto_falls_to_the_cpu():
    assert run("--device", "auto").returncode == 0


def test_cuda_is_refused_with_a_reason():
    result = run("--device", "cuda")
    assert result.returncode == 1
    assert "--device cuda: " in result.stderr and "--device cpu" in result.stderr
    assert "driver" in result.stderr or "no GPU" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--device", "gpu"),
        ("--collectives", "smoke-signals"),
        ("--device", "cpu", "--collectives", "nccl"),
        ("--device", "cpu", "--compute", "fp8"),
    ],
)
def test_wrong_usage(options):
    result = run(*options)
    assert result.returncode == 2, result.stderr
    assert options[-1] in result.stderr
