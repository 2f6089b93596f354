"""`serve --plan` runs the plan, and refuses plans for other jobs and models that do not fit."""

import contextlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from memory_test import write_model
from serving import BINARY, MPI_ENVIRONMENT, ROOT, largest_difference, serve

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")
MODEL = ROOT / "tests" / "fixtures" / "models" / "deepseek-v3"


def write_cluster(ranks, tmp_path):
    cluster = dict(nodes=1, ranks_per_node=ranks, intra_node=dict(bandwidth_gb_s=10, latency_us=1),
                   device=dict(kind="cpu", memory_gb=8, memory_bandwidth_gb_s=20, tflops=dict(bf16=0.1)))
    (tmp_path / "cluster.json").write_text(json.dumps(cluster))
    return tmp_path / "cluster.json"


def plan_for(ranks, tmp_path, *options):
    run = subprocess.run([BINARY, "plan", "--model", MODEL, "--cluster", write_cluster(ranks, tmp_path), "--context", "512",
                          "--concurrency", "4", "--kv-type", "f32", "--json", *options], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def start(ranks, *options, model=MODEL, within=()):
    command = [*within, "mpirun", "-n", str(ranks), BINARY, "serve", "--model", model, "--port", "0", *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **MPI_ENVIRONMENT}, timeout=120)


def test_answers_are_right_wherever_the_plan_puts_experts(tmp_path):
    plan = plan_for(2, tmp_path)
    for layer in plan["placement"]["layers"]:  # every second expert, instead of halves
        layer["experts"] = [[[i % 2, 1.0]] for i in range(len(layer["experts"]))]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    prompts = json.loads((MODEL / "golden.json").read_text())["prompts"]
    with serve(MODEL, 2, "--plan", str(tmp_path / "plan.json")) as server:
        assert server.limit == 512
        for p in [p for p in prompts[1:] if len(p["ids"]) <= 512]:
            assert largest_difference(server.score(p["ids"]), p["logprobs"]) <= 2e-3


def test_answers_are_right_where_every_rank_has_a_slice_of_every_expert(tmp_path):
    plan = plan_for(2, tmp_path, "--slice-experts")
    assert plan["layout"]["sliced_experts"]
    assert round(plan["placement"]["imbalance"], 3) == 1.333  # 24 columns in panels of 16: 16 and 8
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    prompts = json.loads((MODEL / "golden.json").read_text())["prompts"]
    with serve(MODEL, 2, "--plan", str(tmp_path / "plan.json")) as server:
        for p in [p for p in prompts[1:] if len(p["ids"]) <= 512]:
            assert largest_difference(server.score(p["ids"]), p["logprobs"]) <= 2e-3
    run = start(2, "--plan", tmp_path / "plan.json", "--rebalance-steps", "10")
    assert run.returncode == 2 and "--rebalance-steps" in run.stderr


def test_plans_for_other_jobs_are_refused(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan_for(4, tmp_path)))
    run = start(2, "--plan", file)
    assert run.returncode == 2 and "is for 4 ranks, and this job has 2" in run.stderr
    run = start(4, "--plan", file, "--speculative", "mtp")
    assert run.returncode == 2 and "the plan was made without it" in run.stderr
    run = start(4, "--plan", file, model=ROOT / "tests" / "fixtures" / "models" / "llama3")
    assert run.returncode == 2 and "0 experts" in run.stderr


def test_what_does_not_fit_is_refused_before_it_is_read(tmp_path):
    """A model of a terabyte: its file is sparse."""
    write_model(tmp_path, "deepseek_v3")
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_hidden_layers"] = 1
    config["first_k_dense_replace"] = 1
    config["vocab_size"] = 1 << 24
    config["hidden_size"] = 1 << 14
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = start(1, model=tmp_path)
    assert run.returncode == 3
    assert "weights" in run.stderr and "share of this host's free memory" in run.stderr


@pytest.fixture
def control_group():
    """A control group of either version and its file for the limit of memory; few may make one."""
    for mount, limit in ("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"):
        group = Path(mount) / f"shoal-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                if (group / limit).exists():
                    yield group, group / limit
                    return
            finally:
                group.rmdir()
    pytest.skip("no control group can be made")


def test_what_a_control_group_does_not_allow_is_refused(tmp_path, control_group):
    """Two ranks take half a gigabyte each."""
    group, limit = control_group
    limit.write_text(str(700_000_000))
    write_model(tmp_path, "deepseek_v3")
    run = start(2, model=tmp_path, within=["sh", "-c", 'echo $$ > "$0" && exec "$@"', group / "cgroup.procs"])
    assert run.returncode == 3, run.stderr
    share = re.search(r"share of this host's free memory is ([0-9.]+) MB", run.stderr)
    assert 250 < float(share[1]) <= 350
