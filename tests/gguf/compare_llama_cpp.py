#!/usr/bin/env python3
"""Loads GGUF files in llama.cpp and in Shoal and compares what both say of the same tokens. Run by hand with the Python
that has llama-cpp-python:

    python tests/gguf/compare_llama_cpp.py [--folder MODEL --types Q4_K_M,Q2_K] [FILE.gguf ...]

With --folder, `shoal quantize` writes the files first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "golden"))
from serving import BINARY  # noqa: E402


def plain_buffers():
    """llama.cpp keeps weights as they are in the file. Repacked for AMX, some types and shapes crash it (0.3.36)."""
    made = llama_cpp.llama_cpp.llama_model_default_params

    def settings():
        params = made()
        params.use_extra_bufts = False
        return params
    llama_cpp.llama_cpp.llama_model_default_params = settings


plain_buffers()


def theirs(path, prompts):
    model = llama_cpp.Llama(str(path), n_ctx=1024, n_batch=512, logits_all=True, verbose=False, type_k=0, type_v=0,
                            n_threads=1, flash_attn=False)
    tables = []
    for ids in prompts:
        model.reset()
        model.eval(ids)
        logits = np.array(model.scores[:len(ids)], np.float64)
        logits -= logits.max(-1, keepdims=True)
        tables.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    model.close()
    return tables


def compare(path, prompts, folder):
    """KL divergence from llama.cpp, and top-1 agreement, as `shoal eval --reference` reports them."""
    tables = theirs(path, prompts)
    run = folder / "reference"
    vocabulary = tables[0].shape[1]
    with open(run, "wb") as out:  # launch/scored_run.h
        out.write(f"shoal scored run 2, vocabulary {vocabulary}\n".encode())
        for ids, table in zip(prompts, tables):
            out.write(np.uint32(len(ids)).tobytes() + np.array(ids, np.int32).tobytes() + np.uint32(1).tobytes())
            for row, token in zip(table, ids[1:]):
                order = np.argsort(-row, kind="stable")
                pairs = np.zeros(vocabulary, [("token", "<i4"), ("logprob", "<f4")])
                pairs["token"], pairs["logprob"] = order, row[order]
                out.write(np.float32(row[token]).tobytes() + np.uint32(vocabulary).tobytes() + pairs.tobytes())
    done = subprocess.run([BINARY, "eval", "--model", path, "--reference", run, "--quiet", "--json"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["divergence"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--types", default="Q8_0,Q4_K_M,Q2_K,IQ1_S")
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--prompt", help="text of tokens, else random ones")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prompts = [np.random.default_rng(i).integers(2, options.vocabulary, n).tolist() for i, n in enumerate((40, 200))]
        if options.folder and (options.folder / "tokenizer.json").exists():
            from tokenizers import Tokenizer
            lines = (options.prompt or (TESTS.parent / "README.md").read_text()).splitlines()
            tokenizer = Tokenizer.from_file(str(options.folder / "tokenizer.json"))
            ids = tokenizer.encode("\n".join(lines), add_special_tokens=False).ids
            prompts = [ids[i:i + 200] for i in range(0, min(len(ids), 1000), 200)]
        files = list(options.files)
        for kind in options.types.split(",") if options.folder else []:
            files.append(folder / f"{options.folder.name}-{kind}.gguf")
            subprocess.run([BINARY, "quantize", options.folder, files[-1], "--type", kind, "--quiet"],
                           stdout=subprocess.DEVNULL, check=True)
        for path in files:
            print(f"{path.name}, {path.stat().st_size} bytes")
            d = compare(path, prompts, folder)
            print(f"  KL mean {d['kl_mean']:.6f}, 99 % below {d['kl_99']:.6f}, largest {d['kl_max']:.6f}, "
                  f"same likeliest token {d['top1_agreement']:.2%}", flush=True)


if __name__ == "__main__":
    main()
