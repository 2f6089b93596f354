"""Hugging Face folders with integer weights: packed here in numpy as their formats say, they must answer as a folder
with the plain values does: to the last bits where groups are so narrow that weights become FP32, else up to what
rounding activations to 8 bits changes."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "golden"), str(TESTS / "gguf")]
from convert import read_safetensors  # noqa: E402
from serving import BINARY, largest_difference, serve  # noqa: E402

FIXTURES = TESTS / "fixtures" / "models"
GROUP = 8  # narrower than the packed form takes
WIDE = 32
pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")


def groups(weight, size):
    return weight.reshape(weight.shape[0], -1, size)


def pack(codes, axis, order=range(8)):
    """Codes of four bits, eight along `axis` to a word; the i-th place holds the order[i]-th of them."""
    codes = np.moveaxis(codes, axis, -1).astype(np.uint32)
    codes = codes.reshape(*codes.shape[:-1], -1, 8)
    words = np.zeros(codes.shape[:-1], np.uint32)
    for place, which in enumerate(order):
        words |= codes[..., which] << np.uint32(4 * place)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis)).view(np.int32)


def with_zeros(weight, size):
    """Codes [rows, cols], scales and zeros [rows, groups] of 4-bit levels with zero points, and what they are worth."""
    parts = groups(weight, size)
    low, high = parts.min(-1), parts.max(-1)
    scale = ((high - low) / 15).astype(np.float16)
    zero = np.clip(np.rint(-low / scale.astype(np.float32)), 0, 15)
    codes = np.clip(np.rint(parts / scale[..., None].astype(np.float32)) + zero[..., None], 0, 15)
    worth = (codes - zero[..., None]) * scale[..., None].astype(np.float32)
    return codes.reshape(weight.shape), scale, zero, worth.reshape(weight.shape)


def awq(size):
    def store(name, weight, out):
        codes, scale, zero, worth = with_zeros(weight, size)
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        out[name + "qweight"] = pack(codes.T, 1, order)
        out[name + "qzeros"] = pack(zero.T, 1, order)
        out[name + "scales"] = np.ascontiguousarray(scale.T)
        return worth
    return store


def gptq(size, offset, shuffled):
    def store(name, weight, out):
        cols = weight.shape[1]
        group_of = np.arange(cols) // size
        if shuffled:  # act-order: a group's columns lie anywhere
            group_of = np.random.default_rng(cols).permutation(group_of)
        order = np.argsort(group_of, kind="stable")
        codes, scale, zero, worth = with_zeros(weight[:, order], size)
        back = np.argsort(order)
        out[name + "qweight"] = pack(codes[:, back].T, 0)
        out[name + "qzeros"] = pack((zero.T - offset) % 16, 1)
        out[name + "scales"] = np.ascontiguousarray(scale.T)
        out[name + "g_idx"] = group_of.astype(np.int32)
        return worth[:, back]
    return store


def compressed(size, symmetric):
    def store(name, weight, out):
        if symmetric:
            scale = (np.abs(groups(weight, size)).max(-1) / 7.5).astype(np.float32)
            codes = np.clip(np.rint(groups(weight, size) / scale[..., None]), -8, 7)
            worth = (codes * scale[..., None]).reshape(weight.shape)
            codes = codes.reshape(weight.shape) + 8
        else:
            codes, scale, zero, worth = with_zeros(weight, size)
            out[name + "weight_zero_point"] = pack(zero, 0)
        out[name + "weight_packed"] = pack(codes, 1)
        out[name + "weight_scale"] = scale
        out[name + "weight_shape"] = np.array(weight.shape, np.int64)
        return worth
    return store


def int8(block):
    def store(name, weight, out):
        rows, cols = weight.shape
        tall, wide = block or (1, cols)
        padded = np.zeros((-(-rows // tall) * tall, -(-cols // wide) * wide), np.float32)
        padded[:rows, :cols] = weight
        parts = padded.reshape(padded.shape[0] // tall, tall, padded.shape[1] // wide, wide)
        scale = (np.abs(parts).max((1, 3)) / 127).astype(np.float32)
        codes = np.rint(parts / scale[:, None, :, None])
        out[name + "weight"] = codes.reshape(padded.shape)[:rows, :cols].astype(np.int8)
        out[name + ("weight_scale_inv" if block else "weight_scale")] = scale
        return (codes * scale[:, None, :, None]).reshape(padded.shape)[:rows, :cols].astype(np.float32)
    return store


def pack_quantized(size, symmetric):
    weights = dict(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=size)
    return dict(quant_method="compressed-tensors", format="pack-quantized",
                config_groups=dict(group_0=dict(targets=["Linear"], weights=weights)))


FORMS = {
    "awq": (awq(GROUP), dict(quant_method="awq", bits=4, group_size=GROUP, version="gemm", zero_point=True)),
    "gptq": (gptq(GROUP, 1, False), dict(quant_method="gptq", bits=4, group_size=GROUP, desc_act=False)),
    "gptq-v2-act-order": (gptq(GROUP, 0, True), dict(quant_method="gptq", bits=4, group_size=GROUP, desc_act=True,
                                                     checkpoint_format="gptq_v2")),
    "compressed": (compressed(GROUP, True), pack_quantized(GROUP, True)),
    "compressed-zeros": (compressed(GROUP, False), pack_quantized(GROUP, False)),
    "awq-wide": (awq(WIDE), dict(quant_method="awq", bits=4, group_size=WIDE, version="gemm", zero_point=True)),
    "gptq-wide-act-order": (gptq(WIDE, 1, True), dict(quant_method="gptq", bits=4, group_size=WIDE, desc_act=True)),
    "compressed-wide": (compressed(WIDE, True), pack_quantized(WIDE, True)),
    "int8-channel": (int8(None), dict(quant_method="w8a8_int8", activation_scheme="dynamic")),
    "int8-block": (int8((32, 48)), dict(quant_method="blockwise_int8", activation_scheme="dynamic",
                                        weight_block_size=[32, 48])),
}


def write_folders(source, folder, form):
    """folder/packed and folder/plain: the same model in integers and in FP32."""
    store, settings = FORMS[form]
    packed, plain = {}, {}
    for name, values in read_safetensors(source / "model.safetensors").items():
        if "_proj" in name and values.ndim == 2:
            plain[name] = store(name.removesuffix("weight"), values, packed)
        else:
            packed[name] = plain[name] = values
    for kind, tensors in (("packed", packed), ("plain", plain)):
        target = folder / kind
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
        save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, target / "model.safetensors")
        config = json.loads((target / "config.json").read_text())
        if kind == "packed":
            config["quantization_config"] = settings
        (target / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("model,form,ranks", [("qwen2", "awq", 2), ("deepseek-v3", "awq", 1), ("qwen2", "gptq", 1),
                                              ("deepseek-v3", "gptq-v2-act-order", 2), ("qwen2", "compressed", 1),
                                              ("deepseek-v3", "compressed-zeros", 1), ("qwen2", "int8-channel", 2),
                                              ("deepseek-v3", "int8-block", 2), ("deepseek-v2-lite", "awq-wide", 2),
                                              ("deepseek-v2-lite", "gptq-wide-act-order", 1),
                                              ("deepseek-v2-lite", "compressed-wide", 1)])
def test_answers_as_the_plain_values(model, form, ranks, tmp_path):
    write_folders(FIXTURES / model, tmp_path, form)
    prompts = json.loads((FIXTURES / model / "golden.json").read_text())["prompts"][1:5]
    with serve(tmp_path / "plain", ranks) as server:
        want = [server.score(p["ids"]) for p in prompts]
    with serve(tmp_path / "packed", ranks) as server:
        got = [server.score(p["ids"]) for p in prompts]
    rounds = "wide" in form or form.startswith("int8")
    for ours, plain, prompt in zip(got, want, prompts, strict=True):
        if rounds:  # activations to bytes; that may flip a choice between experts here and there
            assert np.median(np.abs(np.subtract(ours, plain))) <= 0.08
        else:
            assert largest_difference(ours, plain) <= 1e-4
        assert largest_difference(plain, prompt["logprobs"]) > 1e-3  # they are not the original's values
