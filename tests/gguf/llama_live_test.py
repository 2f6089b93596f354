"""llama.cpp beside Shoal on the same files, in one run: what its quantizer writes, Shoal runs with its output; what Shoal
writes, it loads with the same output, tokens and chat template. Needs llama-cpp-python (built from source); without it
llama_golden_test.py has what it said once."""

import ctypes
import itertools
import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
from convert import convert
from serving import BINARY, ROOT

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
from compare_llama_cpp import compare  # noqa: E402
from make_llama_golden import random_weights  # noqa: E402
from make_llama_golden import quantize as quantize_there  # noqa: E402

sys.path.insert(0, str(ROOT / "launch" / "demo"))
import problems  # noqa: E402

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")
DEMO = ROOT / "launch" / "demo-model"
NUMBERS = {"Q4_K_M": 15, "Q5_K_M": 17, "Q3_K_M": 12, "Q6_K": 18, "Q2_K": 10, "IQ2_XXS": 19, "IQ1_S": 24, "Q8_0": 7}
# Both round activations to 8 bits, in groups of their own, so predictions differ by that noise.
DENSE_KL, DENSE_TOP1 = 4e-3, 0.9
# With experts, a choice between two may fall on the other side and change a position for good (in BF16 too: one of 800
# here); the demo model, which never had to predict puzzles, only answers, is unsure enough for that.
MOE_KL, MOE_TOP1 = 5e-2, 0.96


def shoal(*arguments):
    done = subprocess.run([BINARY, *map(str, arguments), "--quiet", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def text_of(seed, held_out, count):
    drawn = itertools.islice(problems.stream(seed, held_out), count)
    return "".join(f"<｜User｜>{p.prompt}<｜Assistant｜><think>\n{p.response}<｜end▁of▁sentence｜>" for p in drawn)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo model as a BF16 GGUF, its importance as llama.cpp takes it, and prompts."""
    from tokenizers import Tokenizer
    folder = tmp_path_factory.mktemp("demo")
    shoal("quantize", DEMO, folder / "demo.gguf", "--type", "BF16")
    (folder / "text").write_text(text_of(5, False, 40))
    shoal("eval", "--model", DEMO, "--text", folder / "text", "--importance", folder / "importance")
    ids = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text_of(11, True, 20), add_special_tokens=False).ids
    prompts = [ids[i:i + 200] for i in range(0, 800, 200)]
    assert len(prompts[-1]) == 200
    return folder, importance_for_llama(folder / "importance"), prompts


def importance_for_llama(path):
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}
    entries, keep = [], []
    for name in [n.removesuffix(".in_sum2") for n in tensors if n.endswith(".in_sum2")]:
        sums, counts = tensors[name + ".in_sum2"], tensors[name + ".counts"].reshape(-1, 1)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32).reshape(-1)
        keep.append(means)
        entries.append(llama_cpp.llama_model_imatrix_data(
            name.encode(), means.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), means.size))
    entries.append(llama_cpp.llama_model_imatrix_data(None, None, 0))
    return (llama_cpp.llama_model_imatrix_data * len(entries))(*entries), keep


def check(path, prompts, folder, record_property, kl=MOE_KL, top1=MOE_TOP1):
    d = compare(path, prompts, folder)
    record_property("kl_mean", d["kl_mean"])
    record_property("top1", d["top1_agreement"])
    print(f"{path.name}: KL {d['kl_mean']:.2e}, largest {d['kl_max']:.2e}, top-1 {d['top1_agreement']:.2%}")
    assert d["kl_mean"] < kl and d["top1_agreement"] > top1


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q6_K", "Q2_K", "IQ2_XXS", "IQ1_S"])
def test_what_it_quantizes_runs_here(kind, demo, tmp_path, record_property):
    folder, (importance, _), prompts = demo
    path = tmp_path / f"demo-{kind}.gguf"
    quantize_there(folder / "demo.gguf", path, NUMBERS[kind], importance if kind.startswith("IQ") else None)
    check(path, prompts, tmp_path, record_property)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M"])
def test_mixes_are_composed_alike(kind, demo, tmp_path):
    """Every tensor has the type that llama.cpp gives it, but for one, of which it has a rule for eight experts."""
    folder, _, _ = demo
    there, here = tmp_path / "there.gguf", tmp_path / "here.gguf"
    quantize_there(folder / "demo.gguf", there, NUMBERS[kind], None)
    shoal("quantize", DEMO, here, "--type", kind)
    types = [{t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors if "attn_output" not in t.name}
             for path in (there, here)]
    assert types[0] == types[1]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "Q2_K", "IQ2_XXS", "IQ1_S"])
def test_what_is_quantized_here_runs_there(kind, demo, tmp_path, record_property):
    folder, _, prompts = demo
    path = tmp_path / f"demo-{kind}.gguf"
    shoal("quantize", DEMO, path, "--type", kind, "--importance", folder / "importance")
    check(path, prompts, tmp_path, record_property)


def test_a_mix_runs_there(demo, tmp_path, record_property):
    folder, _, prompts = demo
    path = tmp_path / "mix.gguf"
    shoal("quantize", DEMO, path, "--size", "4bpw", "--importance", folder / "importance")
    check(path, prompts, tmp_path, record_property)


DENSE = dict(hidden_size=512, vocab_size=256, rms_norm_eps=1e-6, max_position_embeddings=1024, num_hidden_layers=3,
             num_attention_heads=8, num_key_value_heads=2, intermediate_size=1024, rope_theta=10000.0)


QWEN3 = dict(DENSE, model_type="qwen3", head_dim=128,
             rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, attn_factor=0.8))


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q6_K", "Q2_K", "IQ2_XXS", "IQ1_S"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_dense_models(family, kind, tmp_path, record_property):
    rng = np.random.default_rng(3)
    config = QWEN3 if family == "qwen3" else dict(DENSE, model_type=family)
    weights = random_weights(config, rng)
    convert(config, weights, tmp_path / "f32.gguf")
    importance = None
    if kind.startswith("IQ"):
        from make_llama_golden import importance_of
        importance, keep = importance_of(tmp_path / "f32.gguf", rng)
    path = tmp_path / f"{family}-{kind}.gguf"
    quantize_there(tmp_path / "f32.gguf", path, NUMBERS[kind], importance)
    prompts = [rng.integers(2, 256, n).tolist() for n in (24, 160)]
    check(path, prompts, tmp_path, record_property, DENSE_KL, DENSE_TOP1)


@pytest.mark.parametrize("key", [None, "attn_factor", "yarn_attn_factor"])
def test_the_magnitude_of_yarn_is_the_same(key, tmp_path, record_property):
    """In FP32, so that any other rotation shows. yarn_attn_factor is what llama.cpp's converter writes, and reads no more."""
    rng = np.random.default_rng(4)
    rope = {k: v for k, v in QWEN3["rope_scaling"].items() if k != "attn_factor"}
    config = dict(QWEN3, rope_scaling=rope | ({key: 0.8} if key else {}))
    convert(config, random_weights(config, rng), tmp_path / "there.gguf")
    shoal("quantize", tmp_path / "there.gguf", tmp_path / "here.gguf", "--type", "F32")
    prompts = [rng.integers(2, 256, n).tolist() for n in (24, 160)]
    for path in (tmp_path / "there.gguf", tmp_path / "here.gguf"):
        check(path, prompts, tmp_path, record_property, 1e-6, 0.99)


def test_tokens_and_chat_template_are_the_same(demo):
    from tokenizers import Tokenizer
    folder = demo[0]
    ours = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    theirs = llama_cpp.Llama(str(folder / "demo.gguf"), vocab_only=True, verbose=False)
    texts = [text_of(3, True, 2), "What is 47 + 38?", "  two  spaces\n\n\ttab", "naïve Ω 日本", "a" * 50, "1234567890"]
    for text in texts:
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == \
            ours.encode(text, add_special_tokens=False).ids, text
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    assert theirs.metadata["tokenizer.chat_template"] == config["chat_template"]
