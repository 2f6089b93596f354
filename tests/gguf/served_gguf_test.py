"""The random checkpoints of tests/fixtures, written as GGUF by the `gguf` package, against transformers' values."""

import json

import pytest
from convert import convert_folder
from serving import BINARY, ROOT, largest_difference, serve

FIXTURES = ROOT / "tests" / "fixtures" / "models"
TOLERANCE = 2e-3  # as tests/golden/served_fixtures_test.py; the matrices are the same
# All that GGUF can say: it has no FP8, and no mscale that differs from mscale_all_dim. On some number of ranks each.
CASES = {
    "deepseek-v3": dict(ranks=2), "deepseek-v3-no-q-lora": dict(ranks=1, kind="BF16"),
    "deepseek-v3-sharded": dict(ranks=1, split_kv_b=False), "deepseek-v2": dict(ranks=3, split_kv_b=False),
    "deepseek-v2-lite": dict(ranks=1), "qwen2": dict(ranks=2), "qwen2-tied": dict(ranks=1, kind="BF16"),
    "qwen3": dict(ranks=2), "qwen3-tied": dict(ranks=1), "llama3": dict(ranks=1), "llama3-f32": dict(ranks=2),
    "deepseek-v1": dict(ranks=3, split_max_tensors=7),
}

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")


@pytest.mark.parametrize("name", CASES)
def test_log_probabilities(name, tmp_path):
    options = dict(CASES[name])
    ranks = options.pop("ranks")
    convert_folder(FIXTURES / name, tmp_path / "model.gguf", **options)
    first = sorted(tmp_path.glob("*.gguf"))[0]
    assert ("-00001-of-" in first.name) == ("split_max_tensors" in options)
    prompts = json.loads((FIXTURES / name / "golden.json").read_text())["prompts"]
    with serve(first, ranks) as server:
        assert server.model == "model"
        for prompt in prompts[1:]:
            assert largest_difference(server.score(prompt["ids"]), prompt["logprobs"]) <= TOLERANCE
        prompt = next(p for p in prompts if p["greedy"])
        tokens, _ = server.greedy(prompt["ids"], len(prompt["greedy"]))
        length = prompt["greedy"].index(1) if 1 in prompt["greedy"] else len(prompt["greedy"])
        assert tokens[:length] == prompt["greedy"][:length]
