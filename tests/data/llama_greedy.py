"""Greedy answers of llama.cpp, recorded: tests/data/llama_greedy.json.

    pip install llama-cpp-python==0.3.36    (builds llama.cpp; needs CMake and a C++ compiler)
    python tests/data/llama_greedy.py MODEL.gguf > tests/data/llama_greedy.json

MODEL is that of `cargo xtask model`. For each prompt: its tokens, and after each token of the answer those three that
llama.cpp finds most likely, with their logits; the answer goes on with the first.
"""
import json
import os
import sys

import llama_cpp
import numpy

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a lighthouse keeper who",
    "Water boils at 100 degrees because",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nName three colours of the rainbow.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "1, 1, 2, 3, 5, 8,",
    "Das Wetter in Berlin ist heute",
    "A recipe for bread. Ingredients: flour, water,",
    "The robot's arm stopped. The engineer looked at the log and",
]
ANSWER = 60

path = sys.argv[1]
llm = llama_cpp.Llama(path, n_ctx=512, n_threads=2, logits_all=False, verbose=False)
answers = []
for prompt in PROMPTS:
    tokens = llm.tokenize(prompt.encode(), add_bos=False, special=True)
    llm.reset()
    llm.eval(tokens)
    top = []
    for _ in range(ANSWER):
        logits = numpy.ctypeslib.as_array(llama_cpp.llama_get_logits(llm.ctx), shape=(llm.n_vocab(),))
        best = numpy.argsort(-logits, kind="stable")[:3]
        top.append([[int(t), round(float(logits[t]), 4)] for t in best])
        llm.eval([int(best[0])])
    answers.append({"prompt": prompt, "tokens": tokens, "top": top})
rows = ",\n".join(json.dumps(a) for a in answers)
print(f'{{"llama_cpp_python": "{llama_cpp.__version__}", "bytes": {os.path.getsize(path)}, "answers": [\n{rows}\n]}}')
