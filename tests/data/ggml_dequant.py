"""Writes ggml_dequant.json: blocks of random bytes and what ggml's own numpy code makes of them.

pip install gguf; python3 ggml_dequant.py
"""

import json
import pathlib

import gguf
import numpy as np

TYPES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
# The most significant byte of each f16 in a block.
HIGH = {
    "F16": [1], "Q4_0": [1], "Q4_1": [1, 3], "Q5_0": [1], "Q5_1": [1, 3], "Q8_0": [1], "Q2_K": [81, 83],
    "Q3_K": [109], "Q4_K": [1, 3], "Q5_K": [1, 3], "Q6_K": [209], "IQ4_NL": [1], "IQ4_XS": [1],
    "F32": [3], "BF16": [1], "MXFP4": [0],
}

random = np.random.default_rng(1)
out = {}
for name in TYPES:
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = 512 // block if block == 256 else max(64 // block, 2)
    data = random.integers(0, 256, (blocks, size), dtype=np.uint8)
    # No infinities, nothing that is not a number.
    for at in HIGH[name]:
        data[:, at] &= 0xBF
    values = gguf.quants.dequantize(data.reshape(1, -1), kind).astype("<f4")
    out[name] = {"bytes": data.tobytes().hex(), "f32": values.tobytes().hex()}
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps(out, indent=1) + "\n")
