"""Tokenizers that a GGUF's metadata describe give the ids of the tokenizer.json they were made from; and `shoal
quantize` writes metadata that say the same again."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from tokenizers import Tokenizer

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "golden"), str(TESTS / "text")]
import tokenizer_families as families  # noqa: E402
from compare_tokenizers import expected, run_tool  # noqa: E402

BUILD = Path(os.environ.get("SHOAL_BUILD", TESTS.parent / "build"))
TOOL = BUILD / "tokenize_tool"
pytestmark = pytest.mark.skipif(not TOOL.exists(), reason=f"{TOOL} is not built")

# The name of tokenizer.ggml.pre, and the token that begins every text, if any does.
FAMILIES = {"deepseek": ("deepseek-v3", "<｜begin▁of▁sentence｜>"), "qwen2": ("qwen2", None),
            "llama3": ("llama-bpe", "<|begin_of_text|>"), "gpt2": ("gpt-2", None), "llama2": (None, "<s>")}


def write_vocabulary(writer, document, pre, bos):
    """As llama.cpp's converters do; `document` is a tokenizer.json."""
    model = document["model"]
    added = {t["id"]: t for t in document["added_tokens"]}
    tokens = {i: t for t, i in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    size = max(tokens) + 1
    kinds = []
    for i in range(size):
        text = tokens.get(i, "")
        if text == "<unk>" and pre is None:
            kinds.append(gguf.TokenType.UNKNOWN)
        elif i in added:
            kinds.append(gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED)
        elif pre is None and text.startswith("<0x") and len(text) == 6:
            kinds.append(gguf.TokenType.BYTE)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2" if pre else "llama")
    if pre:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in model["merges"]])
    else:
        # SentencePiece's scores: a piece that a merge made is worth the less the later it was learnt.
        rank = {"".join(m): -float(i) - 1 for i, m in reversed(list(enumerate(model["merges"])))}
        writer.add_token_scores([rank.get(tokens[i], 0.0) for i in range(size)])
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(kinds)
    if bos:
        writer.add_bos_token_id(next(i for i, t in tokens.items() if t == bos))
    writer.add_add_bos_token(bool(bos))


def write_gguf(path, document, pre, bos):
    writer = gguf.GGUFWriter(path, "llama")
    write_vocabulary(writer, document, pre, bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def compare(tokenizer, path, texts=400):
    rng = random.Random(3)
    added = families.added_texts(tokenizer)
    records = [(rng.choice(["-", "s", "t", "d", "k"]), families.random_text(rng, added)) for _ in range(texts)]
    records += [(flags, s.encode()) for s in families.SAMPLES for flags in ("s", "d")]
    for (flags, data), line in zip(records, run_tool(TOOL, path, records), strict=True):
        got = json.loads(line) if flags in "dk" else [int(i) for i in line.split()]
        assert got == expected(tokenizer, flags, data), (flags, data)


def document_of(name):
    """A family's tokenizer.json, without added tokens that apply to normalized text, which GGUF has no word for."""
    document = json.loads(families.FAMILIES[name]().to_str())
    for token in document["added_tokens"]:
        token["normalized"] = False
    return document


@pytest.mark.parametrize("name", FAMILIES)
def test_same_ids(name, tmp_path):
    pre, bos = FAMILIES[name]
    document = document_of(name)
    write_gguf(tmp_path / "t.gguf", document, pre, bos)
    compare(Tokenizer.from_str(json.dumps(document)), tmp_path / "t.gguf")


def test_unknown_rule_is_told(tmp_path):
    write_gguf(tmp_path / "t.gguf", json.loads(families.gpt2().to_str()), "martian", None)
    done = subprocess.run([TOOL, tmp_path / "t.gguf"], input=b"", capture_output=True)
    assert done.returncode == 1
    assert b'tokenizer.ggml.pre "martian" is not known' in done.stderr


@pytest.mark.parametrize("name", ["deepseek", "qwen2", "llama3"])
def test_quantize_writes_it_again(name, tmp_path):
    source = TESTS / "fixtures" / "models" / "qwen2"
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    document = document_of(name)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    bos = FAMILIES[name][1]
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "chat_template": "{{ messages }}"}))
    size = Tokenizer.from_str(json.dumps(document)).get_vocab_size()
    # The random model's vocabulary is smaller; its tensors only have to be as large as it says.
    widen_vocabulary(folder, size)
    done = subprocess.run([BUILD / "shoal", "quantize", folder, tmp_path / "t.gguf", "--type", "Q8_0", "--quiet"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fields = gguf.GGUFReader(tmp_path / "t.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    assert fields["tokenizer.ggml.add_bos_token"].contents() == bool(bos)
    compare(Tokenizer.from_str(json.dumps(document)), tmp_path / "t.gguf", 150)


def widen_vocabulary(folder, size):
    import numpy as np
    from convert import read_safetensors
    from safetensors.numpy import save_file
    tensors = read_safetensors(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.resize(tensors[name], (size, tensors[name].shape[1]))
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = size
    (folder / "config.json").write_text(json.dumps(config))
