"""Importance files: `shoal eval --importance` sums what enters each weight, `shoal quantize --importance` spends the error
where that is little, and `--size` chooses formats by it. Also a GGUF as input of quantize."""

import json
import os
import subprocess
import sys

import gguf
import numpy as np
import pytest
from convert import read_safetensors
from serving import BINARY, MPI_ENVIRONMENT, ROOT

DEMO = ROOT / "launch" / "demo-model"
TEXT = "What number comes next? 52, 55, 60, 67, 76, 87\nThe difference is always the same.\n" * 12
pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")


def shoal(*arguments, ranks=0, code=0):
    launcher = ["mpirun", "-n", str(ranks)] if ranks else []
    done = subprocess.run([*launcher, BINARY, *map(str, arguments), "--quiet"], capture_output=True, text=True,
                          env={**os.environ, **MPI_ENVIRONMENT})
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


@pytest.fixture(scope="module")
def importance(tmp_path_factory):
    folder = tmp_path_factory.mktemp("importance")
    (folder / "text").write_text(TEXT)
    report = shoal("eval", "--model", DEMO, "--text", folder / "text", "--importance", folder / "one", "--json")
    return folder, report["perplexity"]["tokens"], read(folder / "one")


def read(path):
    reader = gguf.GGUFReader(path)
    assert bytes(reader.fields["general.type"].parts[-1]).decode() == "imatrix"
    return {t.name: np.array(t.data) for t in reader.tensors}


def test_sums_are_of_what_enters_each_weight(importance):
    _, tokens, sums = importance
    config = json.loads((DEMO / "config.json").read_text())
    experts, chosen = config["n_routed_experts"], config["num_experts_per_tok"]
    count = sums["blk.0.attn_q_a.weight.counts"].item()
    assert count >= tokens  # each window's last token is scored by none, but computed
    for name, values in sums.items():
        if name.endswith("_exps.weight.counts"):
            assert values.shape == (experts, 1) and values.sum() == chosen * count
        elif name.endswith(".counts") and "_b.weight" not in name and not name.startswith("output"):
            assert values.item() == count, name
    layer = config["first_k_dense_replace"]
    assert np.array_equal(sums[f"blk.{layer}.ffn_gate_exps.weight.in_sum2"],
                          sums[f"blk.{layer}.ffn_up_exps.weight.in_sum2"])
    # An expert's inputs are some of its router's.
    assert np.allclose(sums[f"blk.{layer}.ffn_gate_exps.weight.in_sum2"].sum(0) / chosen,
                       sums[f"blk.{layer}.ffn_gate_inp.weight.in_sum2"].reshape(-1), rtol=1e-4)
    # What enters the first layer is the normed embedding of the tokens.
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    tensors = read_safetensors(DEMO / "model.safetensors")
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    begin = tokenizer.encode("", add_special_tokens=True).ids
    step = 512 - len(begin)
    windows = [begin + ids[i:i + step] for i in range(0, len(ids) - 1, step)]
    x = tensors["model.embed_tokens.weight"][np.concatenate(windows)].astype(np.float64)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"])
    x *= tensors["model.layers.0.input_layernorm.weight"]
    assert np.allclose(sums["blk.0.attn_q_a.weight.in_sum2"].reshape(-1), (x * x).sum(0), rtol=1e-4)


def test_ranks_sum_to_the_same(importance):
    folder, _, sums = importance
    shoal("eval", "--model", DEMO, "--text", folder / "text", "--importance", folder / "three", "--json", ranks=3)
    other = read(folder / "three")
    assert other.keys() == sums.keys()
    for name, values in sums.items():
        scale = np.abs(values).max()
        assert np.allclose(other[name], values, rtol=2e-2, atol=2e-2 * scale), name


def weighted_errors(path, sums):
    """Of some tensors, as sum(importance * error^2)."""
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    tensors = read_safetensors(DEMO / "model.safetensors")
    for name, ours in (("attn_output", "self_attn.o_proj"), ("attn_q_a", "self_attn.q_a_proj"),
                       ("ffn_down_shexp", "mlp.shared_experts.down_proj")):
        weight = tensors[f"model.layers.2.{ours}.weight"]
        rest = (stored[f"blk.2.{name}.weight"] - weight) ** 2
        yield (rest * sums[f"blk.2.{name}.weight.in_sum2"].reshape(1, -1)).sum()


@pytest.mark.parametrize("kind", ["Q4_K", "Q2_K", "IQ2_XXS"])
def test_errors_go_where_they_count_least(kind, importance, tmp_path):
    folder, _, sums = importance
    shoal("quantize", DEMO, tmp_path / "alike.gguf", "--type", kind, "--json")
    shoal("quantize", DEMO, tmp_path / "weighed.gguf", "--type", kind, "--importance", folder / "one", "--json")
    alike, weighed = (list(weighted_errors(tmp_path / f"{n}.gguf", sums)) for n in ("alike", "weighed"))
    assert all(w < a for w, a in zip(weighed, alike)), (weighed, alike)


def test_a_gguf_is_an_input_too(tmp_path):
    shoal("quantize", DEMO, tmp_path / "demo.gguf", "--type", "BF16", "--json")
    shoal("quantize", tmp_path / "demo.gguf", tmp_path / "by-way-of.gguf", "--type", "Q4_K_M", "--json")
    shoal("quantize", DEMO, tmp_path / "direct.gguf", "--type", "Q4_K_M", "--json")
    one, other = (gguf.GGUFReader(tmp_path / f"{n}.gguf") for n in ("direct", "by-way-of"))
    assert [t.name for t in one.tensors] == [t.name for t in other.tensors]
    for a, b in zip(one.tensors, other.tensors):
        assert a.tensor_type == b.tensor_type and np.array_equal(a.data, b.data), a.name
    for key, field in one.fields.items():
        if not key.startswith("GGUF.") and key != "general.name":
            assert other.fields[key].contents() == field.contents(), key
    assert one.fields.keys() == other.fields.keys()


@pytest.mark.parametrize("size,most", [("3.5MB", 3_500_000), ("4.2bpw", None)])
def test_size_is_met(size, most, importance, tmp_path):
    folder = importance[0]
    out = tmp_path / "mix.gguf"
    report = shoal("quantize", DEMO, out, "--size", size, "--importance", folder / "one", "--json")
    if most is None:
        counted = subprocess.run([BINARY, "inspect", DEMO, "--json"], stdout=subprocess.PIPE, check=True).stdout
        most = 4.2 / 8 * json.loads(counted)["parameters"]["total"]
    assert 0.97 * most < report["bytes"] == out.stat().st_size <= most
    assert len({t.tensor_type for t in gguf.GGUFReader(out).tensors}) > 3


def test_a_mix_beats_the_uniform_type_of_its_size(tmp_path):
    """Over problems that neither the importance nor the training has seen, with their questions."""
    sys.path.insert(0, str(ROOT / "perf"))
    from precision import texts
    scored, weighed = tmp_path / "scored.jsonl", tmp_path / "weighed.jsonl"
    scored.write_text(texts(11, held_out=True, count=60, questions=True))
    weighed.write_text(texts(5, held_out=False, count=100, questions=True))
    shoal("eval", "--model", DEMO, "--text", weighed, "--importance", tmp_path / "importance", "--json")
    shoal("eval", "--model", DEMO, "--text", scored, "--save", tmp_path / "reference", "--json")

    def divergence(name, *form):
        shoal("quantize", DEMO, tmp_path / name, *form, "--importance", tmp_path / "importance", "--json")
        return shoal("eval", "--model", tmp_path / name, "--reference", tmp_path / "reference",
                     "--json")["divergence"]["kl_mean"]

    uniform = divergence("uniform.gguf", "--type", "IQ2_XXS")
    size = (tmp_path / "uniform.gguf").stat().st_size
    assert divergence("mix.gguf", "--size", f"{size}B") < 0.7 * uniform


def test_mistakes_are_told(importance, tmp_path):
    folder = importance[0]
    assert "even the smallest formats" in shoal("quantize", DEMO, tmp_path / "x", "--size", "1MB", code=3)
    assert "is no size" in shoal("quantize", DEMO, tmp_path / "x", "--size", "many", code=2)
    assert "--type or --size" in shoal("quantize", DEMO, tmp_path / "x", code=2)
    message = shoal("quantize", DEMO, tmp_path / "x", "--type", "Q2_K", "--importance", DEMO / "config.json", code=1)
    assert "config.json" in message
    other = ROOT / "tests" / "fixtures" / "models" / "deepseek-v3"
    message = shoal("quantize", other, tmp_path / "x", "--type", "Q8_0", "--importance", folder / "one", code=1)
    assert "does not belong to this model" in message
