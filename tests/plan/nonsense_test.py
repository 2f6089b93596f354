"""Nonsense gets a message that names the field, and the exit code of what it is: 2 an option, 1 a file, 3 too large."""

import copy
import json
import subprocess

import pytest
from serving import BINARY, ROOT

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")
MODEL = "deepseek-v2-lite"  # 26 layers of 64 experts
CLUSTER = dict(nodes=2, ranks_per_node=8, intra_node=dict(bandwidth_gb_s=200, latency_us=2),
               inter_node=dict(bandwidth_gb_s=50, latency_us=5),
               device=dict(kind="gpu", memory_gb=80, memory_bandwidth_gb_s=3000, tflops=dict(bf16=900, fp8=1800)))
CONFIG = json.loads((ROOT / "planner" / "cards" / "models" / f"{MODEL}.json").read_text())


def changed(document, path, *value):
    """With another value at a path like device.tflops.bf16; without a value there is no such field."""
    document = copy.deepcopy(document)
    *parents, last = path.split(".")
    at = document
    for key in parents:
        at = at[key]
    at.pop(last, None)
    if value:
        at[last] = value[0]
    return document


def plan(*options):
    return subprocess.run([BINARY, "plan", *map(str, options)], capture_output=True, text=True, timeout=60)


def check(run, code, words):
    assert run.returncode == code, run.stderr or run.stdout
    assert all(word in run.stderr for word in words.split("|")), run.stderr
    assert len(run.stderr) < 700 and "e+308" not in run.stderr and "79769313486" not in run.stderr, run.stderr


@pytest.mark.parametrize("path, value, words", [
    ("device.memory_gb", [0], "device: memory_gb is 0"),
    ("device.memory_gb", [], "device: memory_gb is missing"),
    ("device.memory_gb", [-5], "device: memory_gb is -5"),
    ("device.memory_gb", ["80"], "device: memory_gb must be a number"),
    ("device.memory_gb", [1e300], "device: memory_gb"),
    ("device.memory_gb", [1e30], "device: memory_gb"),
    ("device.memory_bandwidth_gb_s", [0], "memory_bandwidth_gb_s is 0"),
    ("device.kind", ["tpu"], 'device: kind is "tpu"'),
    ("device.kind", [], "device: kind is missing"),
    ("device", [], "device is missing"),
    ("device", [[1]], "device: must be a JSON object"),
    ("device.tflops", [], "tflops is missing"),
    ("device.tflops", [5], "tflops: must be a JSON object"),
    ("device.tflops.bf16", [0], "tflops: bf16 is 0"),
    ("device.measured", [1], "measured must be true or false"),
    ("device.linear", [{"Q9": {}}], "linear: Q9"),
    ("device.linear", [{"BF16": {"weights_g_s": 0, "tflops": 1}}], "linear: BF16: weights_g_s is 0"),
    ("ranks_per_node", [0], "ranks_per_node is 0"),
    ("ranks_per_node", [1e30], "ranks_per_node must be an integer"),
    ("nodes", [0], "nodes is 0"),
    ("nodes", [-1], "nodes is -1"),
    ("nodes", [1.5], "nodes must be an integer"),
    ("nodes", [2**40], "nodes is 1099511627776"),
    ("intra_node", [], "intra_node is missing"),
    ("inter_node", [], "inter_node is missing"),
    ("inter_node.bandwidth_gb_s", [0], "inter_node: bandwidth_gb_s is 0"),
    ("inter_node.latency_us", [-1], "inter_node: latency_us is -1"),
    ("groups", [[]], "groups must be a list"),
    ("groups", [3], "groups must be a list"),
    ("price_per_hour", [-1], "price_per_hour is -1"),
])
def test_clusters(path, value, words, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(changed(CLUSTER, path, *value)))
    check(plan("--model", MODEL, "--cluster", tmp_path / "c.json"), 1, "c.json|" + words)


def test_twice_the_nodes_cost_twice_as_much(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(CLUSTER | dict(price_per_hour=64)))
    (tmp_path / "d.json").write_text(json.dumps(CLUSTER | dict(price_per_hour=128, nodes=4)))
    asked = ["--model", MODEL, "--concurrency", 64, "--json"]
    one = plan(*asked, "--cluster", tmp_path / "c.json", "--nodes", 4)
    other = plan(*asked, "--cluster", tmp_path / "d.json")
    prices = [json.loads(run.stdout)["prediction"]["price_per_million_tokens"] for run in (one, other)]
    assert prices[0] == pytest.approx(prices[1])


@pytest.mark.parametrize("options, words", [
    (["--rate", 5], "--rate requires --simulate"),
    (["--output", 5], "--output requires --simulate"),
    (["--target-tpot-ms", 5], "--target-tpot-ms requires --sweep"),
    (["--plot", "p.svg"], "--plot requires --sweep"),
    (["--sweep", "--simulate"], "excludes"),
    (["--sweep", "--concurrency", 4], "--concurrency excludes --sweep"),
    (["--sweep", "--context", 0], "--context is 0"),
    (["--pin"], "--pin goes with --cluster auto"),
])
def test_options_that_would_be_ignored(options, words):
    check(plan("--model", MODEL, "--cluster", "h800x8", *options), 2, words)


@pytest.mark.parametrize("text", ["", "null", "[]", "[" * 5000, '{"nodes": NaN}', '{"nodes": 1, "nodes": 1}', '{"dev'])
def test_files_that_are_no_cluster(text, tmp_path):
    (tmp_path / "c.json").write_text(text)
    check(plan("--model", MODEL, "--cluster", tmp_path / "c.json"), 1, "c.json")


@pytest.mark.parametrize("path, value, words", [
    *[(field, [], f"{field} is missing") for field in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size",
                                                       "num_attention_heads", "n_routed_experts", "kv_lora_rank",
                                                       "moe_intermediate_size", "num_experts_per_tok")],
    ("hidden_size", [-1], "hidden_size is -1"),
    ("hidden_size", ["2048"], "hidden_size must be an integer"),
    ("hidden_size", [2**40], "hidden_size is 1099511627776"),
    ("num_hidden_layers", [0], "num_hidden_layers is 0"),
    ("n_routed_experts", [10**6], "n_routed_experts is 1000000"),
    ("num_experts_per_tok", [65], "num_experts_per_tok is 65"),
    ("model_type", ["bert"], '"bert" is not supported'),
])
def test_configurations(path, value, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(changed(CONFIG, path, *value)))
    check(plan("--model", tmp_path / "config.json", "--cluster", "h100x8"), 1, "config.json|" + words)


@pytest.mark.parametrize("options, words", [
    ("--context -1", "--context is -1"),
    ("--context 0", "--context is 0"),
    ("--context 1000000000", "max_position_embeddings 163840"),
    ("--context nan", "--context"),
    ("--context 1099511627776", "--context"),
    ("--concurrency 0", "--concurrency is 0"),
    ("--nodes -1", "--nodes"),
    ("--nodes 1000000", "--nodes"),
    ("--redundant-experts -1", "--redundant-experts is -1"),
    ("--redundant-experts 1000000000", "--redundant-experts is 1000000000"),
    ("--slice-experts --precision Q4_0 --nodes 8", "--slice-experts: experts are 1408 wide, in blocks of 32"),
    ("--tensor-parallel 3", "--tensor-parallel is 3"),
    ("--tensor-parallel -1", "--tensor-parallel is -1"),
    ("--prompt 5000", "--prompt is 5000"),
    ("--precision fp3", "--precision fp3"),
    ("--kv-type fp3", "KV cache type fp3"),
    ("--speculative mtp", "num_nextn_predict_layers"),
    ("--max-batched-tokens 0", "--max-batched-tokens"),
    ("--sweep --target-tpot-ms nan", "--target-tpot-ms|nan"),
    ("--simulate --rate nan", "--rate|nan"),
    ("--simulate --rate inf", "--rate|inf"),
    ("--simulate --rate 0", "--rate is 0"),
    ("--simulate --prefix-hits nan", "--prefix-hits|nan"),
    ("--simulate --prefix-hits 1.5", "--prefix-hits is 1.5"),
    ("--simulate --requests 2000000000", "--requests"),
    ("--simulate --prefill-nodes 5", "--prefill-nodes is 5"),
])
def test_options(options, words):
    check(plan("--model", MODEL, "--cluster", "h100x8", *options.split()), 2, words)


def test_unknown_names_list_the_known():
    check(plan("--model", MODEL, "--cluster", "h900x8"), 2, "h900x8|h800x8")
    check(plan("--model", "deepseek-r9", "--cluster", "h800x8"), 2, "deepseek-r9|deepseek-r1")
    check(plan("--cluster", "h800x8"), 2, "--model is required")
    check(plan("--model", MODEL), 2, "--cluster is required")


@pytest.mark.parametrize("loads, code, words", [
    ([[1] * 64] * 25, 2, "loads of 25 layers, and the model has 26"),
    ([[1] * 63] * 26, 2, "63 numbers, and the model has 64"),
    ([["a"] * 64] * 26, 1, "loads.json"),
    ([[-1] * 64] * 26, 1, "loads.json|layer 0, expert 0"),
    ([[1e308] * 64] * 26, 1, "loads.json|layer 0, expert 0"),
    ({"a": 1}, 1, "loads.json"),
    ({"layers": {"x": [1]}}, 1, "loads.json"),
])
def test_loads(loads, code, words, tmp_path):
    (tmp_path / "loads.json").write_text(json.dumps(loads))
    run = plan("--model", MODEL, "--cluster", "h100x8", "--loads", tmp_path / "loads.json")
    assert run.returncode == code and all(word in run.stderr for word in words.split("|")), run.stderr


@pytest.mark.parametrize("trace", [[], [[0, -1, 5]], [["a", 1, 1]], [[0, 2**40, 5]], [[0, 5 - 2**40, 5]], [[1e300, 5, 5]], 3])
def test_traces(trace, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(trace))
    check(plan("--model", MODEL, "--cluster", "h100x8", "--simulate", "--trace", tmp_path / "t.json"), 1, "t.json")


def test_too_much_is_said_not_to_fit():
    for options in (["--concurrency", "2000000000"], ["--redundant-experts", "448"]):
        run = plan("--model", MODEL, "--cluster", "rtx4090x8", "--nodes", "1", *options)
        assert run.returncode == 3 and "does NOT fit" in run.stdout, run.stdout + run.stderr


@pytest.fixture(scope="module")
def good_plan(tmp_path_factory):
    cluster = dict(ranks_per_node=1, device=dict(kind="cpu", memory_gb=8, memory_bandwidth_gb_s=20, tflops=dict(bf16=0.1)))
    path = tmp_path_factory.mktemp("plan") / "cluster.json"
    path.write_text(json.dumps(cluster))
    return json.loads(plan("--model", SERVED, "--cluster", path, "--context", 512, "--kv-type", "f32", "--json").stdout)


SERVED = ROOT / "tests" / "fixtures" / "models" / "deepseek-v3"


@pytest.mark.parametrize("path, value, code, words", [
    ("version", [2], 1, "version is not 1"),
    ("version", [], 1, "version is missing"),
    ("model", [], 1, "model is missing"),
    ("model.n_routed_experts", [-1], 1, "model: n_routed_experts is -1"),
    ("model.n_routed_experts", [0], 1, "layer"),
    ("cluster", [], 1, "cluster is missing"),
    ("cluster", [5], 1, "plan.json: must be a JSON object"),
    ("workload.context", [-1], 1, "workload: context is -1"),
    ("workload.context", [float("nan")], 1, "not valid JSON"),
    ("workload.context", [1e30], 1, "workload: context must be an integer"),
    ("workload.kv_type", ["fp3"], 1, "plan.json: workload: kv_type must be f32, bf16, fp8 or int8"),
    ("workload.compute", ["fp3"], 1, "workload: compute must be f32 or bf16"),
    ("layout.ranks", [0], 1, "layout: ranks is 0"),
    ("layout.ranks", [2], 1, "2 ranks, and the cluster 1"),
    ("layout.tensor_parallel", ["one"], 1, "layout: tensor_parallel must be an integer"),
    ("layout.sliced_experts", [3], 1, "layout: sliced_experts must be true or false"),
    ("memory", [], 1, "memory is missing"),
    ("memory.ranks", [[]], 1, "ranks must be a list of 1"),
    ("memory.kv_bytes_per_token", ["much"], 1, "kv_bytes_per_token must be a number"),
    ("placement.layers", ["all"], 1, "layers must be a list"),
    ("prediction", [], 1, "prediction is missing"),
    ("prediction.tpot_ms", [None], 1, "tpot_ms is missing"),
])
def test_plan_files(path, value, code, words, good_plan, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(changed(good_plan, path, *value)))
    run = subprocess.run([BINARY, "serve", "--model", SERVED, "--port", "0", "--plan", tmp_path / "plan.json"],
                         capture_output=True, text=True, timeout=60)
    assert run.returncode == code and words in run.stderr, run.stderr
