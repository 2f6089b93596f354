"""`shoal quantize`: what it writes is read by the `gguf` package, holds the values it should, and answers like the
source."""

import json
import math
import os
import shutil
import subprocess

import gguf
import numpy as np
import pytest
from convert import convert_folder, read_safetensors, renamed
from serving import BINARY, ROOT, largest_difference, serve

FIXTURES = ROOT / "tests" / "fixtures" / "models"
pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")


def quantize(source, out, kind, *options):
    done = subprocess.run([BINARY, "quantize", source, out, "--type", kind, "--json", "--quiet", *options],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def worst_score(model, prompts, ranks=1):
    with serve(model, ranks) as server:
        return max(largest_difference(server.score(p["ids"]), p["logprobs"]) for p in prompts[1:5])


def prompts_of(name):
    return json.loads((FIXTURES / name / "golden.json").read_text())["prompts"]


@pytest.mark.parametrize("name", ["deepseek-v3-no-q-lora", "llama3", "qwen2-tied", "qwen3"])
def test_gguf_holds_the_same_tensors(name, tmp_path):
    out = tmp_path / "model.gguf"
    report = quantize(FIXTURES / name, out, "F32")
    assert report["relative_error"]["all"] == 0
    assert report["bytes"] == out.stat().st_size
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.journal"))
    config = json.loads((FIXTURES / name / "config.json").read_text())
    want = dict(renamed(config, read_safetensors(FIXTURES / name / "model.safetensors"), True))
    got = {t.name: t.data for t in gguf.GGUFReader(out).tensors}
    factors = got.pop("rope_freqs.weight", None)
    assert (factors is not None) == (name == "llama3")
    assert got.keys() == want.keys()
    for tensor, values in want.items():
        assert np.array_equal(got[tensor], values), tensor
    assert worst_score(out, prompts_of(name), 2) <= 2e-3


@pytest.mark.parametrize("said,written", [({}, None), ({"attn_factor": 0.9}, 0.9),
                                          ({"attention_factor": 1.25}, 1.25 / (0.1 * math.log(4) + 1))])
def test_the_magnitude_of_yarn_is_kept(said, written, tmp_path):
    """A GGUF file says what it is multiplied with, whatever config.json says of it."""
    source = shutil.copytree(FIXTURES / "qwen3", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    del config["rope_scaling"]["attn_factor"]
    config["rope_scaling"] |= said
    (source / "config.json").write_text(json.dumps(config))
    quantize(source, tmp_path / "model.gguf", "F32")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert reader.get_field("general.architecture").contents() == "qwen3"
    got = reader.get_field("qwen3.rope.scaling.attn_factor")
    assert (got.contents() if got else None) == (pytest.approx(written) if written else None)


def test_fp8_source(tmp_path):
    """R1's own form is what is quantized in practice."""
    out = tmp_path / "model.gguf"
    quantize(FIXTURES / "deepseek-v3-fp8", out, "F32")
    assert worst_score(out, prompts_of("deepseek-v3-fp8")) <= 2e-3


def test_split_source(tmp_path):
    convert_folder(FIXTURES / "deepseek-v1", tmp_path / "split.gguf", split_max_tensors=7)
    parts = sorted(tmp_path.glob("*.gguf"))
    report = quantize(parts[0], tmp_path / "model.gguf", "Q8_0")
    assert len(parts) > 1 and report["source_bytes"] == sum(part.stat().st_size for part in parts)


def test_rows_that_fit_no_block_get_a_finer_format(tmp_path):
    out = tmp_path / "model.gguf"
    report = quantize(FIXTURES / "deepseek-v3-no-q-lora", out, "Q4_K_M")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}
    assert types["blk.1.ffn_gate_inp.weight"] == types["output_norm.weight"] == "F32"
    assert types["blk.0.attn_output.weight"] == "Q5_0"  # 64 columns: no super-block, two blocks of 32
    assert types["blk.1.ffn_down_exps.weight"] == "F16"  # 16 columns
    assert 0.001 < report["relative_error"]["attention"] < 0.06


@pytest.mark.parametrize("kind,low,high", [("FP8", 0.02, 0.03), ("INT8", 0.004, 0.012), ("INT4", 0.05, 0.13)])
def test_folders(kind, low, high, tmp_path):
    """Read again by Shoal, which then answers as the same weights, rounded the same way in Python, would."""
    source = FIXTURES / "qwen2"
    options = ["--group-size", "16"] if kind == "INT4" else []
    report = quantize(source, tmp_path / "out", kind, *options)
    assert low < report["relative_error"]["attention"] < high
    inspected = subprocess.run([BINARY, "inspect", tmp_path / "out", "--json"], capture_output=True, text=True)
    assert inspected.returncode == 0, inspected.stdout + inspected.stderr
    assert json.loads(inspected.stdout)["whole"]
    prompts = prompts_of("qwen2")
    exact = {"FP8": 0.8, "INT8": 0.35, "INT4": 3.0}[kind]
    assert 1e-4 < worst_score(tmp_path / "out", prompts) < exact


@pytest.mark.parametrize("arguments,code,message", [
    (["nowhere", "out.gguf", "--type", "Q9"], 2, "--type Q9 is not known"),
    (["nowhere", "out.gguf", "--type", "Q8_0"], 1, "nowhere"),
    (["nowhere", "out.gguf"], 2, "--type"),
    (["nowhere", "out", "--type", "FP8", "--importance", "file"], 2, "--importance"),
    (["nowhere", "out", "--type", "INT8", "--importance", "file"], 2, "--importance"),
    (["nowhere", "out", "--type", "FP8", "--group-size", "128"], 2, "--group-size"),
    (["nowhere", "out.gguf", "--size", "4bpw", "--group-size", "32"], 2, "--group-size"),
])
def test_mistakes_are_told(arguments, code, message, tmp_path):
    done = subprocess.run([BINARY, "quantize", *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr


@pytest.mark.parametrize("kind,message", [("Q8_0", "out: is no regular file"), ("FP8", "out: is no folder")])
def test_what_is_no_file_is_not_replaced(kind, message, tmp_path):
    os.mkfifo(tmp_path / "out")
    done = subprocess.run([BINARY, "quantize", "nowhere", "out", "--type", kind], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert (tmp_path / "out").is_fifo()
