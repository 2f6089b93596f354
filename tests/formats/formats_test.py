"""The number formats against the `gguf` package: decoders to the bit on random and adversarial blocks, encoders by the
error they leave, and both as inverses of each other."""

import os
import pathlib
import subprocess

import gguf
import numpy as np
import pytest

TOOL = pathlib.Path(os.environ.get("SHOAL_BUILD", "build")) / "format_tool"


def tool(*arguments, data=b""):
    return subprocess.run([TOOL, *map(str, arguments)], input=data, stdout=subprocess.PIPE, check=True).stdout


def formats():
    lines = tool("list").decode().splitlines()
    return {line.split()[0]: [int(n) for n in line.split()[1:]] for line in lines}


FORMATS = formats()
WRITTEN = [name for name, facts in FORMATS.items() if facts[3]]


def kind(name):
    return gguf.GGMLQuantizationType[name]


def decode(name, blocks):
    return np.frombuffer(tool("decode", name, data=blocks.tobytes()), np.float32)


def encode(name, values, importance=None, folder=None):
    arguments = []
    if importance is not None:
        path = folder / "importance"
        path.write_bytes(importance.astype(np.float32).tobytes())
        arguments.append(path)
    data = tool("encode", name, *arguments, data=values.astype(np.float32).tobytes())
    return np.frombuffer(data, np.uint8)


def test_every_type_of_the_package_that_models_use_is_there():
    reference = {t.name for t in gguf.GGMLQuantizationType}
    # Types of activations and indices, and formats newer than any published R1.
    unused = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "NVFP4", "Q1_0"}
    assert set(FORMATS) == reference - unused & reference
    for name, (number, elements, size, _) in FORMATS.items():
        assert number == kind(name).value
        assert (elements, size) == gguf.GGML_QUANT_SIZES[kind(name)]


def adversarial_blocks(name, rng):
    """Random bytes; every byte value alone; scales that are zero, subnormal, infinite or NaN in every place."""
    size = FORMATS[name][2]
    yield rng.integers(0, 256, (512, size), dtype=np.uint8)
    yield np.repeat(np.arange(256, dtype=np.uint8)[:, None], size, axis=1)
    halves = np.array([0, 0x8000, 1, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E01], np.uint16).view(np.uint8)
    blocks = rng.integers(0, 256, (size * 10, size), dtype=np.uint8)
    for i, block in enumerate(blocks):
        at = i % max(size - 1, 1)
        block[at:at + 2] = halves.reshape(-1, 2)[i % 10][:len(block[at:at + 2])]
    yield blocks


@pytest.mark.parametrize("name", FORMATS)
def test_decoder_agrees_to_the_bit(name):
    rng = np.random.default_rng(1)
    for blocks in adversarial_blocks(name, rng):
        with np.errstate(all="ignore"):
            want = np.asarray(gguf.quants.dequantize(blocks.reshape(1, -1), kind(name)), np.float32).ravel()
        got = decode(name, blocks)
        assert got.shape == want.shape
        same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
        assert same.all(), f"{name}: {np.flatnonzero(~same)[:5]}: {got[~same][:5]} {want[~same][:5]}"


def weights_like_a_model(rng, rows=64, cols=1024):
    """Gaussian rows of differing size with some heavy columns."""
    values = rng.standard_normal((rows, cols)) * np.exp(rng.standard_normal((rows, 1)) * 0.5) * 0.02
    values[:, rng.integers(0, cols, 12)] *= 6
    return values.astype(np.float32)


def squared_error(name, values, blocks, importance=None):
    rest = (decode(name, blocks).reshape(values.shape) - values).astype(np.float64) ** 2
    return float((rest if importance is None else rest * importance).sum())


@pytest.mark.parametrize("name", WRITTEN)
def test_encoder_is_no_worse_than_the_package(name):
    rng = np.random.default_rng(2)
    values = weights_like_a_model(rng)
    ours = squared_error(name, values, encode(name, values))
    try:
        theirs = np.asarray(gguf.quants.quantize(values, kind(name)))
    except NotImplementedError:
        pytest.skip(f"the gguf package does not write {name}")
    reference = squared_error(name, values, theirs.view(np.uint8).ravel())
    assert ours <= reference * 1.000001, f"{name}: {ours} against {reference}"


# Root mean square error of Gaussian values in units of their standard deviation that the formats should come to: a
# little above what llama.cpp's encoder leaves (tests/formats/compare_encoders.py measures it live).
GAUSSIAN_RMSE = {"Q8_0": 0.0075, "Q6_K": 0.020, "Q5_K": 0.038, "Q4_K": 0.075, "Q3_K": 0.150, "Q2_K": 0.290,
                 "Q4_0": 0.095, "Q4_1": 0.087, "Q5_0": 0.047, "Q5_1": 0.043, "IQ4_NL": 0.078, "IQ4_XS": 0.079,
                 "MXFP4": 0.120, "IQ3_S": 0.135, "IQ3_XXS": 0.185, "IQ2_S": 0.25, "IQ2_XS": 0.29, "IQ2_XXS": 0.33,
                 "IQ1_M": 0.44, "IQ1_S": 0.50, "TQ1_0": 0.45, "TQ2_0": 0.45, "F32": 0, "F16": 3e-4, "BF16": 2e-3}


@pytest.mark.parametrize("name", WRITTEN)
def test_encoder_error_on_gaussian_values(name):
    values = np.random.default_rng(3).standard_normal((16, 1024)).astype(np.float32)
    rmse = np.sqrt(squared_error(name, values, encode(name, values)) / values.size)
    assert rmse <= GAUSSIAN_RMSE[name]


@pytest.mark.parametrize("name", [n for n in WRITTEN if FORMATS[n][1] > 1])
def test_importance_moves_the_error_where_it_costs_less(name, tmp_path):
    rng = np.random.default_rng(4)
    values = weights_like_a_model(rng, 32)
    importance = np.exp(rng.standard_normal(values.shape[1]) * 1.5).astype(np.float32)
    every = np.broadcast_to(importance, values.shape)
    plain = squared_error(name, values, encode(name, values), every)
    weighed = squared_error(name, values, encode(name, values, every, tmp_path), every)
    assert weighed <= plain * 1.0001
    if name not in ("Q8_0",):
        assert weighed < plain


@pytest.mark.parametrize("name", WRITTEN)
def test_difficult_values_survive(name):
    cases = [np.zeros(1024), np.full(1024, 1e-30), np.full(1024, -3.0), np.full(1024, 2.0), np.eye(1, 1024)[0] * 7,
             np.where(np.arange(1024) % 2, 1.0, -1.0) * 1e-6, np.linspace(0, 1, 1024), np.linspace(-1, 0, 1024),
             np.full(1024, 1e4)]
    for values in cases:
        got = decode(name, encode(name, values))
        assert np.isfinite(got).all()
        size, lost = np.sqrt((values ** 2).mean()), np.sqrt(((got - values) ** 2).mean())
        if np.abs(values).max() > 1e-4:  # below, a half-precision scale is nothing
            assert lost <= (0.8 if name[:2] in ("TQ", "IQ") else 0.3) * size
        else:
            assert np.sqrt((got ** 2).mean()) <= 2 * size


@pytest.mark.parametrize("name", [n for n in WRITTEN if n not in ("F32", "F16", "BF16", "MXFP4")])
def test_what_was_decoded_can_be_encoded_again(name):
    """Values that a block can hold exactly come back with next to no error: the search finds the stored scale."""
    values = np.random.default_rng(5).standard_normal((32, 1024)).astype(np.float32)
    first = decode(name, encode(name, values))
    again = decode(name, encode(name, first.reshape(values.shape)))
    rest, lost = np.abs(again - first).mean(), np.abs(first - values.ravel()).mean()
    assert rest < 0.35 * lost
