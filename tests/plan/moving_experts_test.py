"""Replicas of experts, and experts that move while the server runs, on the demo model: answers stay the same, and loads are
as planned."""

import json
import re
import subprocess
import urllib.request

import pytest
from serve_plan_test import write_cluster
from serving import BINARY, ROOT, serve

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")
MODEL = ROOT / "launch" / "demo-model"
LAYERS, EXPERTS = 3, 8


def puzzles(task, count):
    lines = (json.loads(line) for line in (MODEL / "puzzles.jsonl").read_text().splitlines())
    return [line["prompt"] for line in lines if line["task"] == task][:count]


def ask(server, prompts, tokens=48):
    """(text, log-probabilities) of each greedy answer; all prompts at once."""
    choices = server.complete(prompts, max_tokens=tokens, logprobs=0)
    return [(choice["text"], choice["logprobs"]["token_logprobs"]) for choice in choices]


def rank_loads(server):
    with urllib.request.urlopen(server.url + "/status.json", timeout=20) as response:
        return [rank["expert_tokens"] for rank in json.load(response)["ranks"]]


def metric(server, name):
    with urllib.request.urlopen(server.url + "/metrics", timeout=20) as response:
        return float(re.search(rf"^shoal:{name}(?:{{[^}}]*}})? (\S+)$", response.read().decode(), re.MULTILINE)[1])


def replica_plan(ranks, task, tmp_path):
    """A plan made for one kind of puzzle, with as many replicas again as ranks."""
    loads = json.loads((MODEL / "expert_load.json").read_text())["tasks"][task]
    (tmp_path / "loads.json").write_text(json.dumps(loads))
    plan = subprocess.run([BINARY, "plan", "--model", MODEL, "--cluster", write_cluster(ranks, tmp_path), "--context", "512",
                           "--concurrency", "16", "--kv-type", "f32", "--redundant-experts", str(ranks), "--loads",
                           tmp_path / "loads.json", "--json"], capture_output=True, text=True, check=True)
    (tmp_path / "plan.json").write_text(plan.stdout)
    return json.loads(plan.stdout)


def test_replicas_serve_the_same_answers_with_the_loads_planned(tmp_path):
    prompts = puzzles("ordering", 24)
    with serve(MODEL, 1) as server:
        plain = ask(server, prompts)
    answers = []
    for ranks in (2, 3, 4):
        plan = replica_plan(ranks, "ordering", tmp_path)
        replicas = [len(expert) for layer in plan["placement"]["layers"] for expert in layer["experts"]]
        assert LAYERS * EXPERTS < sum(replicas) <= LAYERS * -(-(EXPERTS + ranks) // ranks) * ranks  # slots are whole
        with serve(MODEL, ranks, "--plan", str(tmp_path / "plan.json")) as server:
            answers.append(ask(server, prompts))
            alone = ask(server, prompts[3:4])
            loads = rank_loads(server)
        assert alone == answers[-1][3:4], "an answer does not depend on its company"
        skew = max(loads) * ranks / sum(loads)
        print(f"{ranks} ranks: largest load over the mean {skew:.3f}, planned {plan['placement']['imbalance']:.3f}")
        assert skew < plan["placement"]["imbalance"] + 0.05, loads
    assert answers[0] == answers[1] == answers[2], "nor on the number of ranks, to the bit"
    assert [text for text, _ in answers[0]] == [text for text, _ in plain]
    for (_, got), (_, want) in zip(answers[0], plain):
        assert max(abs(a - b) for a, b in zip(got, want)) < 1e-3


def test_experts_move_under_skewed_traffic(record_property):
    """Puzzles of one kind go to few experts. With two of them on a rank, and no replicas, no placement is quite even."""
    prompts = puzzles("ordering", 32)
    with serve(MODEL, 4, "--rebalance-steps", "1000000") as server:
        unmoved = [ask(server, prompts), ask(server, prompts)]
        before = rank_loads(server)
        assert metric(server, "expert_moves_total") == 0
    with serve(MODEL, 4, "--rebalance-steps", "40") as server:
        for _ in range(3):
            assert ask(server, prompts) == unmoved[0], "moving changes no answer, to the bit"
        start = rank_loads(server)
        assert ask(server, prompts) == unmoved[1]
        after = [end - begin for begin, end in zip(start, rank_loads(server))]
        moves = metric(server, "expert_moves_total")
        measured = metric(server, "expert_imbalance")
    skew, evened = (max(loads) * 4 / sum(loads) for loads in (before, after))
    record_property("before", skew)
    record_property("after", evened)
    print(f"largest rank load over the mean: {skew:.3f} before, {evened:.3f} after {moves:.0f} moves; "
          f"the worst layer's, last look: {measured:.3f}")
    assert moves > 0
    assert evened < skew - 0.05
