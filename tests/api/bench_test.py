"""`shoal bench`: what it tells of a model whose shape is known."""

import csv
import io
import json
import os
import subprocess

import pytest
from conftest import DEMO_MODEL, needs_demo_model
from serving import BINARY, MPI_ENVIRONMENT

CONFIG = json.loads((DEMO_MODEL / "config.json").read_text())
MOE_LAYERS = CONFIG["num_hidden_layers"] - CONFIG["first_k_dense_replace"]


def bench(ranks, *options):
    needs_demo_model()
    launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
    return subprocess.run([*launcher, BINARY, "bench", "--model", DEMO_MODEL, "--quiet", *options], capture_output=True, text=True,
                          timeout=300, env={**os.environ, **MPI_ENVIRONMENT})


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("weights", [[], ["--weights", "random", "--precision", "Q8_0"]])
def test_prompts_that_come_at_once_are_read_in_one_step(ranks, weights):
    done = bench(ranks, *weights, "--concurrency", "1,4", "--prompt-tokens", "120", "--output-tokens", "4", "--repeat", "1",
                 "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ranks"] == ranks and [row["concurrency"] for row in report["results"]] == [1, 4]
    for row in report["results"]:
        # All first tokens come out of the same step, so that the last of them comes with the mean. Where one of four prompts
        # is read alone before, the mean is a fifth below the last.
        seconds = 120 * row["concurrency"] / row["prefill_tokens_per_s"]
        assert row["ttft_ms"] == pytest.approx(1e3 * seconds, rel=0.15)
        assert row["decode_tokens_per_s"] == pytest.approx(1e3 * row["concurrency"] / row["tpot_ms"])
    one, four = report["results"]
    assert one["experts_read_per_step"] == CONFIG["num_experts_per_tok"] * MOE_LAYERS  # of one token
    assert one["experts_read_per_step"] < four["experts_read_per_step"] <= CONFIG["n_routed_experts"] * MOE_LAYERS
    assert one["weight_bytes_per_step"] < four["weight_bytes_per_step"]


def test_table_and_csv():
    options = ["--concurrency", "2", "--prompt-tokens", "16", "--output-tokens", "4"]
    assert bench(1, *options).stdout.splitlines()[-1].split()[0] == "2"
    row, = csv.DictReader(io.StringIO(bench(1, *options, "--csv").stdout))
    assert row["concurrency"] == "2" and float(row["tpot_ms"]) > 0


@pytest.mark.parametrize("options, says", [(["--output-tokens", "1"], "at least 2"), (["--layers", "2"], "--weights random"),
                                           (["--prompt-tokens", "100000"], "100000")])
def test_what_cannot_be_measured_is_said(options, says):
    done = bench(1, *options)
    assert done.returncode != 0 and says in done.stderr
