"""The error that our encoders leave beside llama.cpp's, on the same values, with and without importance weights. Run by
hand with the Python that has llama-cpp-python:

    python tests/formats/compare_encoders.py build/format_tool
"""

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

LIBRARY = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so"))))
LIBRARY.ggml_quantize_chunk.restype = ctypes.c_size_t
LIBRARY.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                                        ctypes.c_int64, ctypes.c_void_p]
NEEDS_IMPORTANCE = {"IQ2_XXS", "IQ2_XS", "IQ1_S"}


def theirs(kind, values, importance):
    rows, cols = values.shape
    out = np.zeros(gguf.quants.quant_shape_to_byte_shape(values.shape, kind), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    LIBRARY.ggml_quantize_init(int(kind))
    LIBRARY.ggml_quantize_chunk(int(kind), values.ctypes.data, out.ctypes.data, 0, rows, cols, weights)
    return out


def ours(tool, kind, values, importance):
    command = [tool, "encode", kind.name]
    with tempfile.NamedTemporaryFile() as file:
        if importance is not None:
            file.write(np.ascontiguousarray(np.broadcast_to(importance, values.shape)).tobytes())
            file.flush()
            command.append(file.name)
        data = subprocess.run(command, input=values.tobytes(), stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(data, np.uint8).reshape(gguf.quants.quant_shape_to_byte_shape(values.shape, kind))


def error(kind, values, blocks, importance):
    rest = (gguf.quants.dequantize(blocks, kind).astype(np.float64) - values) ** 2
    weights = 1 if importance is None else importance
    return np.sqrt((rest * weights).sum() / (values.astype(np.float64) ** 2 * weights).sum())


def main():
    tool = sys.argv[1]
    rng = np.random.default_rng(0)
    heavy = rng.standard_normal((64, 2048)) * np.exp(0.5 * rng.standard_normal((64, 1)))
    heavy[:, rng.integers(0, 2048, 20)] *= 6
    rows = 16 if "--quick" in sys.argv else 64
    cases = {"gaussian": rng.standard_normal((rows, 2048)), "outliers": heavy[:rows],
             "laplace": rng.laplace(size=(rows, 2048))}
    importance = np.exp(1.5 * rng.standard_normal(2048)).astype(np.float32)
    written = [line.split() for line in subprocess.run([tool, "list"], stdout=subprocess.PIPE, text=True).stdout.splitlines()]
    worse = 0
    print(f"{'relative error, ours / llama.cpp':34}" + "".join(f"{name:>22}{'weighted':>22}" for name in cases))
    only = sys.argv[sys.argv.index("--only") + 1].split(",") if "--only" in sys.argv else None
    for name, _, block, _, writes in written:
        if only and name not in only:
            continue
        if writes == "0" or int(block) == 1:
            continue
        kind = gguf.GGMLQuantizationType[name]
        line = f"{name:34}"
        for values in cases.values():
            values = np.ascontiguousarray(values, np.float32)
            for weights in (None, importance):
                if weights is None and name in NEEDS_IMPORTANCE:
                    line += f"{'':>22}"
                    continue
                mine = error(kind, values, ours(tool, kind, values, weights), weights)
                reference = error(kind, values, theirs(kind, values, weights), weights)
                worse += mine > reference * 1.0001
                line += f"{mine:12.5f} /{reference:8.5f}"
        print(line)
    print(f"{worse} worse")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
