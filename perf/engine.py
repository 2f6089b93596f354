#!/usr/bin/env python3
"""Shoal and llama.cpp on the same model, machine and threads, alternately in one run, beside the machine's limits.

    python3 -m venv perf-venv
    CMAKE_ARGS="-DGGML_NATIVE=ON" perf-venv/bin/pip install --no-binary llama-cpp-python -r perf/requirements.txt
    perf-venv/bin/python perf/engine.py --folder /tmp/models --types Q8_0 Q4_K_M BF16 FP8 --threads 2

The model is made here: R1's architecture with 1.6 billion parameters and random weights, quantized by llama.cpp's own
quantizer; or (--shape distill-1.5b) R1-Distill-Qwen-1.5B's; or (--shape r1-layers --types Q4_K IQ1_S) layers of R1's full
size, whose matrices have one type each and whose experts are copies of one, because 256 different ones would take an hour
to quantize. Nothing is downloaded. A cell is the best of --rounds rounds; the table gives tokens/s of all sequences
together. FP8 is of random weights, and Shoal's alone.
"""

import argparse
import ctypes
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from llama_cpp import _ggml

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {
    "moe-1.6b": dict(layers=8, hidden=2048, dense=6144, experts=64, expert_width=512, top_k=8, groups=8, kept_groups=4,
                     shared=1, heads=16, q_lora=768, kv_lora=512, nope=128, rope=64, value=128, vocab=32768,
                     context=8192),
    "distill-1.5b": dict(layers=28, hidden=1536, dense=8960, heads=12, kv_heads=2, head_dim=128, vocab=151936,
                         context=8192),
    # Two of R1's own layers, a dense one and one with experts (12 billion parameters), and its vocabulary.
    "r1-layers": dict(layers=2, hidden=7168, dense=18432, experts=256, expert_width=2048, top_k=8, groups=8,
                      kept_groups=4, shared=1, heads=128, q_lora=1536, kv_lora=512, nope=128, rope=64, value=128,
                      vocab=129280, context=8192),
}
MODEL = SHAPES["moe-1.6b"]
FILE_TYPES = {"BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q4_K_M": 15, "Q4_0": 2, "Q3_K_M": 12, "Q2_K": 10}
# As in the dynamic files, the IQ types are those of the routed experts, and all else is Q4_K.
TYPES = {"moe-1.6b": [*FILE_TYPES, "FP8"],
         "distill-1.5b": [*FILE_TYPES],
         "r1-layers": ["Q8_0", "Q6_K", "Q4_K", "Q2_K", "IQ3_XXS", "IQ2_XXS", "IQ1_S", "FP8"]}
PROMPT, STEPS = 256, 24
ISA = "auto"
HAS_AMX = b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()


def is_mla(m):
    """DeepSeek's architecture, or else Qwen2's."""
    return "kv_lora" in m


def attention_tensors(m):
    if not is_mla(m):
        yield "attn_q", (m["heads"] * m["head_dim"], m["hidden"])
        yield "attn_k", (m["kv_heads"] * m["head_dim"], m["hidden"])
        yield "attn_v", (m["kv_heads"] * m["head_dim"], m["hidden"])
        yield "attn_output", (m["hidden"], m["heads"] * m["head_dim"])
        return
    yield "attn_q_a", (m["q_lora"], m["hidden"])
    yield "attn_q_b", (m["heads"] * (m["nope"] + m["rope"]), m["q_lora"])
    yield "attn_kv_a_mqa", (m["kv_lora"] + m["rope"], m["hidden"])
    yield "attn_k_b", (m["heads"], m["kv_lora"], m["nope"])
    yield "attn_v_b", (m["heads"], m["value"], m["kv_lora"])
    yield "attn_output", (m["hidden"], m["heads"] * m["value"])


def has_experts(m, layer):
    return "experts" in m and layer > 0


def tensors(m):
    """(GGUF name, shape) of every matrix."""
    yield "token_embd.weight", (m["vocab"], m["hidden"])
    yield "output.weight", (m["vocab"], m["hidden"])
    for layer in range(m["layers"]):
        p = f"blk.{layer}."
        for name, shape in attention_tensors(m):
            yield f"{p}{name}.weight", shape
        kinds = [("", (m["dense"], m["hidden"]))]
        if has_experts(m, layer):
            yield p + "ffn_gate_inp.weight", (m["experts"], m["hidden"])
            kinds = [("_exps", (m["experts"], m["expert_width"], m["hidden"])),
                     ("_shexp", (m["shared"] * m["expert_width"], m["hidden"]))]
        for suffix, (*stack, width, hidden) in kinds:
            yield f"{p}ffn_gate{suffix}.weight", (*stack, width, hidden)
            yield f"{p}ffn_up{suffix}.weight", (*stack, width, hidden)
            yield f"{p}ffn_down{suffix}.weight", (*stack, hidden, width)


def vectors(m):
    """(GGUF name, size, value of every element)."""
    yield "output_norm.weight", m["hidden"], 1
    for layer in range(m["layers"]):
        p = f"blk.{layer}."
        yield p + "attn_norm.weight", m["hidden"], 1
        yield p + "ffn_norm.weight", m["hidden"], 1
        if is_mla(m):
            yield p + "attn_q_a_norm.weight", m["q_lora"], 1
            yield p + "attn_kv_a_norm.weight", m["kv_lora"], 1
        else:
            yield p + "attn_q.bias", m["heads"] * m["head_dim"], 0
            yield p + "attn_k.bias", m["kv_heads"] * m["head_dim"], 0
            yield p + "attn_v.bias", m["kv_heads"] * m["head_dim"], 0
        if has_experts(m, layer):
            yield p + "exp_probs_b.bias", m["experts"], 0


def cached_width(m):
    """Elements of a token in a layer's KV cache."""
    return m["kv_lora"] + m["rope"] if is_mla(m) else 2 * m["kv_heads"] * m["head_dim"]


def token_names(vocab):
    """The 256 bytes as byte-level tokenizers spell them, then made-up words."""
    letters = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [0x100 + i for i in range(256 - len(letters))]
    return [chr(c) for c in letters + others] + [f"<word {i}>" for i in range(vocab - 256)]


def blocks_of(values, kind):
    """`values` [rows, cols] quantized by llama.cpp, as bytes [rows, bytes of a row]."""
    rows, cols = values.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.empty((rows, cols // block * size), np.uint8)
    quantize_chunk = _ggml.libggml.ggml_quantize_chunk
    quantize_chunk.restype = ctypes.c_size_t
    quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + 3 * [ctypes.c_int64] + [ctypes.c_void_p]
    importance = np.ones(cols, np.float32)  # which some types ask for
    written = quantize_chunk(int(kind), values.ctypes.data, out.ctypes.data, 0, rows, cols, importance.ctypes.data)
    assert written == out.nbytes
    return out


def type_of(name, shape, kind):
    """Of a matrix in a file of `kind`: the router is FP32, and what has no whole blocks is Q8_0."""
    if "ffn_gate_inp" in name:
        return gguf.GGMLQuantizationType.F32
    kind = gguf.GGMLQuantizationType["Q4_K" if kind.startswith("IQ") and "_exps" not in name else kind]
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else gguf.GGMLQuantizationType.Q8_0


def random_matrix(rng, name, shape, kind):
    """Bytes of a matrix or stack; of a quantized stack all matrices are the same."""
    quantized = kind not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.BF16)
    values = rng.standard_normal(shape[-2:] if quantized else shape, np.float32)
    values *= np.float32(0.1 if "ffn_gate_inp" in name else 0.02)
    if kind == gguf.GGMLQuantizationType.BF16:
        return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    if quantized:
        blocks = blocks_of(values, kind)
        return np.tile(blocks, (*shape[:-2], 1, 1))
    return values


def make_model(path, m, kind):
    writer = gguf.GGUFWriter(path, "deepseek2" if is_mla(m) else "qwen2")
    writer.add_block_count(m["layers"])
    writer.add_context_length(m["context"])
    writer.add_embedding_length(m["hidden"])
    writer.add_feed_forward_length(m["dense"])
    writer.add_head_count(m["heads"])
    writer.add_head_count_kv(1 if is_mla(m) else m["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(m["vocab"])
    if is_mla(m):
        writer.add_rope_dimension_count(m["rope"])
        writer.add_q_lora_rank(m["q_lora"])
        writer.add_kv_lora_rank(m["kv_lora"])
        writer.add_key_length(m["kv_lora"] + m["rope"])
        writer.add_value_length(m["kv_lora"])
        writer.add_key_length_mla(m["nope"] + m["rope"])
        writer.add_value_length_mla(m["value"])
    if "experts" in m:
        writer.add_leading_dense_block_count(1)
        writer.add_expert_count(m["experts"])
        writer.add_expert_used_count(m["top_k"])
        writer.add_expert_feed_forward_length(m["expert_width"])
        writer.add_expert_shared_count(m["shared"])
        writer.add_expert_weights_scale(2.5)
        writer.add_expert_weights_norm(True)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_group_count(m["groups"])
        writer.add_expert_group_used_count(m["kept_groups"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(token_names(m["vocab"]))
    writer.add_token_types([gguf.TokenType.NORMAL] * m["vocab"])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, size, _ in vectors(m):
        writer.add_tensor_info(name, (size,), np.dtype(np.float32), 4 * size)
    for name, shape in tensors(m):
        of = type_of(name, shape, kind)
        block, size = gguf.GGML_QUANT_SIZES[of]
        writer.add_tensor_info(name, shape, np.dtype(np.float32), math.prod(shape) // block * size, of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(1)
    for _, size, value in vectors(m):
        writer.write_tensor_data(np.full(size, value, np.float32))
    for name, shape in tensors(m):  # one at a time in memory
        writer.write_tensor_data(random_matrix(rng, name, shape, type_of(name, shape, kind)))
    writer.close()


def quantize(source, target, kind, threads):
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = FILE_TYPES[kind], threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)) != 0:
        raise SystemExit(f"{target}: llama.cpp could not quantize it")


class LlamaCpp:
    """The peer, through its C functions: no Python is timed but the calls."""

    def __init__(self, path, threads):
        model = llama_cpp.llama_model_default_params()
        # Its layouts for AMX (and, with them, for other CPUs) have no product for attn_v_b: it would abort.
        model.use_extra_bufts = not (HAS_AMX and is_mla(MODEL))
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        self.threads = threads

    def run(self, sequences):
        """Tokens/s of a prefill of `sequences` prompts and of decoding them all."""
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = sequences * (PROMPT + STEPS + 8)
        settings.n_batch, settings.n_ubatch = max(PROMPT, 512), 512
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = self.threads
        context = llama_cpp.llama_init_from_model(self.model, settings)
        rng = np.random.default_rng(sequences)
        batch = llama_cpp.llama_batch_init(PROMPT, 0, 1)

        def decode(tokens, positions, ids, wanted):
            batch.n_tokens = len(tokens)
            for i, (token, position, sequence, logits) in enumerate(zip(tokens, positions, ids, wanted)):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), position, 1
                batch.seq_id[i][0], batch.logits[i] = sequence, logits
            begin = time.perf_counter()
            if llama_cpp.llama_decode(context, batch) != 0:
                raise SystemExit("llama.cpp failed")
            llama_cpp.llama_synchronize(context)
            return time.perf_counter() - begin

        def likeliest(row):
            logits = llama_cpp.llama_get_logits_ith(context, row)
            return int(np.ctypeslib.as_array(logits, (MODEL["vocab"],)).argmax())

        prefill, following = 0.0, []
        for sequence in range(sequences):
            prompt = rng.integers(2, MODEL["vocab"], PROMPT)
            prefill += decode(prompt, range(PROMPT), [sequence] * PROMPT, [0] * (PROMPT - 1) + [1])
            following.append(likeliest(-1))
        times = []
        for step in range(STEPS):
            times.append(decode(following, [PROMPT + step] * sequences, range(sequences), [1] * sequences))
            following = [likeliest(i) for i in range(sequences)]
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return sequences * PROMPT / prefill, sequences / float(np.median(times))


def run_shoal(model, threads, batches):
    """With --compute bf16: as with llama.cpp, the KV cache has 16 bits."""
    command = [str(ROOT / "build/shoal"), "bench", *model, "--threads", str(threads), "--quiet", "--json",
               "--isa", ISA, "--concurrency", ",".join(map(str, batches)), "--prompt-tokens", str(PROMPT),
               "--output-tokens", str(STEPS), "--compute", "bf16", "--kv-cache-gb", "1",
               "--max-model-len", str(max(PROMPT + STEPS, MODEL["context"]))]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return report["device"], {r["concurrency"]: r for r in report["results"]}


def shoal_fp8(folder, threads, batches):
    """Of weights made up by Shoal: llama.cpp has no FP8."""
    m = MODEL
    folder.mkdir(exist_ok=True)
    config = dict(
        architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", num_hidden_layers=m["layers"],
        hidden_size=m["hidden"], intermediate_size=m["dense"], n_routed_experts=m["experts"],
        moe_intermediate_size=m["expert_width"], num_experts_per_tok=m["top_k"], n_group=m["groups"],
        topk_group=m["kept_groups"], n_shared_experts=m["shared"], num_attention_heads=m["heads"],
        num_key_value_heads=m["heads"], q_lora_rank=m["q_lora"], kv_lora_rank=m["kv_lora"],
        qk_nope_head_dim=m["nope"], qk_rope_head_dim=m["rope"], v_head_dim=m["value"], vocab_size=m["vocab"],
        max_position_embeddings=m["context"], first_k_dense_replace=1, scoring_func="sigmoid",
        topk_method="noaux_tc", norm_topk_prob=True, routed_scaling_factor=2.5, rms_norm_eps=1e-6, rope_theta=10000.0,
        moe_layer_freq=1, num_nextn_predict_layers=0, hidden_act="silu", bos_token_id=0, eos_token_id=1)
    (folder / "config.json").write_text(json.dumps(config))
    return run_shoal(["--model", str(folder), "--weights", "random", "--precision", "fp8"], threads, batches)


def limits(threads, which=""):
    """GB/s read, and 1e9 operations/s (a multiplication and an addition are two)."""
    command = [str(ROOT / "build/perf/kernels_bench"), f"--threads={threads}", f"--isa={ISA}",
               f"--benchmark_filter=^limit/{which}", "--benchmark_format=json", "--benchmark_min_time=0.2"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    found = {}
    for entry in report["benchmarks"]:
        name = entry["name"].split("/")[1]
        found[name] = entry["GB/s"] if name == "read" else entry["GFLOP/s"]
    return found


def operations_per_token(m):
    """Of a prompt's token: all layers without the head."""
    total = 0
    for name, shape in tensors(m):
        if name in ("token_embd.weight", "output.weight"):
            continue
        share = m["top_k"] / m["experts"] if "_exps" in name else 1
        total += 2 * share * float(np.prod(shape))
    return total


def seconds_per_prompt_token(m, machine, floats):
    """At the best rates: of products with weights, and of attention in BF16 to half of the prompt."""
    rates = {name: value for name, value in machine.items() if name != "read"}
    in_floats = max(value for name, value in rates.items() if "bytes" not in name)
    of_head = m["nope"] + m["rope"] + m["value"] if is_mla(m) else 2 * m["head_dim"]
    attention = m["layers"] * m["heads"] * of_head * PROMPT
    return (operations_per_token(m) / (in_floats if floats else max(rates.values())) + attention / in_floats) / 1e9


def cpu_name():
    return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]


def main():
    global MODEL, ISA, PROMPT
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the models are made and kept (8 GB each)")
    parser.add_argument("--types", nargs="+",
                        help="; ".join(f"of {shape}: {', '.join(types)}" for shape, types in TYPES.items()))
    parser.add_argument("--shape", choices=SHAPES, default="moe-1.6b")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--isa", default="auto", help="Shoal's, and the limits' (build the peer for no more than that: "
                        "-DGGML_NATIVE=OFF -DGGML_AVX2=ON ...)")
    parser.add_argument("--prompt", type=int, default=PROMPT, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-make", action="store_true", help="make the models and measure nothing")
    options = parser.parse_args()
    options.types = options.types or [kind for kind in ("Q8_0", "Q4_K_M", "Q4_K", "BF16", "FP8")
                                      if kind in TYPES[options.shape]]
    if wrong := set(options.types) - set(TYPES[options.shape]):
        parser.error(f"--shape {options.shape} takes {', '.join(TYPES[options.shape])}, not {', '.join(sorted(wrong))}")
    options.folder.mkdir(parents=True, exist_ok=True)
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()

    MODEL, ISA, PROMPT = SHAPES[options.shape], options.isa, options.prompt
    copies = options.shape == "r1-layers"
    kinds = options.types if copies else ["BF16", *options.types]
    files = {kind: options.folder / f"{options.shape}-{kind}.gguf" for kind in kinds if kind != "FP8"}
    for kind, path in files.items():
        if path.exists():
            continue
        if copies or kind == "BF16":
            make_model(path, MODEL, kind)
        else:
            quantize(files["BF16"], path, kind, options.threads)
    if options.only_make:
        return

    machine = limits(options.threads)
    print(f"{time.strftime('%Y-%m-%d')}, {cpu_name()}, {options.threads} threads; llama-cpp-python "
          f"{llama_cpp.__version__}; tokens/s, best of {options.rounds} rounds")
    if HAS_AMX and is_mla(MODEL):
        print("llama.cpp without its AMX layout, with which it aborts on this model (0.3.36)")
    print("limits: " + ", ".join(f"{name} {value:.0f}" for name, value in machine.items()))
    for kind in options.types:
        floats = kind in ("BF16", "FP8")
        most_tokens = 1 / seconds_per_prompt_token(MODEL, machine, floats)
        # Of a sequence in the KV cache, in BF16.
        cached_bytes = MODEL["layers"] * cached_width(MODEL) * 2 * PROMPT
        engines = {}  # name: function of a batch giving (prefill, decode) and, of Shoal, the limit of decoding
        if kind != "FP8":
            peer = LlamaCpp(files[kind], options.threads)
            engines["llama.cpp"] = lambda batch: (*peer.run(batch), None)
        device = ""

        def ours(batch):
            nonlocal device
            # Reading before and after: on shared hosts its rate changes by a half from minute to minute.
            before = limits(options.threads, "read")["read"]
            if kind == "FP8":
                device, results = shoal_fp8(options.folder / f"{options.shape}-fp8", options.threads, [batch])
            else:
                device, results = run_shoal(["--model", str(files[kind])], options.threads, [batch])
            r, read = results[batch], max(before, limits(options.threads, "read")["read"])
            by_reading = read * 1e9 / (r["weight_bytes_per_step"] + batch * cached_bytes) * batch
            return r["prefill_tokens_per_s"], r["decode_tokens_per_s"], min(by_reading, most_tokens)

        engines["Shoal"] = ours
        best, limit = {}, {}  # a limit is of the run whose rate is the best
        for _ in range(options.rounds):  # alternately, so that all have the machine's good and bad moments
            for batch in options.batches:
                for name, measure in engines.items():
                    prefill, decode, most_decoded = measure(batch)
                    print(f"{kind}, {batch} sequences, {name}: prefill {prefill:.1f}, decode {decode:.1f}",
                          file=sys.stderr, flush=True)
                    rows = {("decode", batch): decode}
                    if batch == 1:
                        rows["prefill", batch] = prefill
                        limit["prefill", batch] = most_tokens
                    for row, value in rows.items():
                        if value <= best.get((row, name), 0):
                            continue
                        best[row, name] = value
                        if most_decoded and row[0] == "decode":
                            limit[row] = most_decoded
        if kind != "FP8":
            llama_cpp.llama_model_free(peer.model)
        print(f"\n{kind} (Shoal: {device})\n{'':<12}" + "".join(f"{name:>14}" for name in engines) +
              f"{'to the best':>14}{'limit':>10}{'of it':>8}")
        for row in sorted(limit, key=lambda key: (key[0] == "decode", key[1])):
            found = [best[row, name] for name in engines]
            peers = max(found[:-1], default=0)
            ratio = f"{found[-1] / peers:.2f}" if peers else ""
            title = f"prefill {PROMPT}" if row[0] == "prefill" else f"decode x{row[1]}"
            print(f"{title:<12}" + "".join(f"{value:>14.1f}" for value in found) +
                  f"{ratio:>14}{limit[row]:>10.1f}{found[-1] / limit[row]:>8.0%}", flush=True)


if __name__ == "__main__":
    main()
