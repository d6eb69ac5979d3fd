"""Writes families/NAME.gguf and NAME.json: a tiny random model of each family by Hugging Face transformers, made GGUF
by llama.cpp's converter, and transformers' logits after each token of a text.

pip install torch==2.15.0 transformers==5.24.0 safetensors numpy
pip download --no-deps --no-binary :all: llama_cpp_python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
python3 families.py llama_cpp_python-0.3.36/vendor/llama.cpp [NAME ...]

What the converter decides from a tokenizer's hash is left out: there is no tokenizer, only a vocabulary of that size.
Weights are drawn so that attention is sharp, experts differ and logits are some units large: what a family adds is seen.
"""

import json
import pathlib
import sys
import tempfile

import safetensors.torch
import torch
import transformers as hf

VOCAB, TOKENS = 64, 72
BASE = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 16}
EXPERTS = {"num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2, "num_hidden_layers": 2}
GRANITE = {"embedding_multiplier": 3.0, "logits_scaling": 1.5, "residual_multiplier": 0.6, "attention_multiplier": 0.15,
           "tie_word_embeddings": True}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 96,
        "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [1.0 + 0.7 * i for i in range(8)]}
PARTIAL = LONG | {"original_max_position_embeddings": 48, "partial_rotary_factor": 0.75,
                  "short_factor": LONG["short_factor"][:6], "long_factor": LONG["long_factor"][:6]}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
        "beta_fast": 4.0, "beta_slow": 1.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
LOCAL = {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5},
         "sliding_attention": {"rope_type": "default", "rope_theta": 1e3}}

# Name: transformers' class, and what differs from BASE.
MODELS = {
    "llama": ("Llama", SMALL | {"rope_parameters": LLAMA3}),
    "mixtral": ("Mixtral", SMALL | EXPERTS),
    "qwen2": ("Qwen2", {"rope_parameters": YARN | {"beta_fast": 32.0}}),
    "qwen3": ("Qwen3", SMALL | {"num_attention_heads": 6, "num_key_value_heads": 3}),
    "gemma3": ("Gemma3", SMALL | {"sliding_window": 21, "query_pre_attn_scalar": 16, "rope_parameters": LOCAL,
                                  "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
                                  "num_hidden_layers": 7, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "hidden_size": 32, "tie_word_embeddings": True}),
    "ministral3": ("Ministral3", SMALL | {"rope_parameters": YARN | {
        "mscale": 1.0, "mscale_all_dim": 0.7, "llama_4_scaling_beta": 0.4, "max_position_embeddings": 512}}),
    "phi3-short": ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 96, "sliding_window": 21}),
    "phi3-long": ("Phi3", {"rope_parameters": PARTIAL, "original_max_position_embeddings": 48,
                           "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", SMALL | {"sliding_window": 21, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 3.0,
                                  "final_logit_softcapping": 4.0, "tie_word_embeddings": True}),
    "gemma4": ("Gemma4", SMALL | {
        "sliding_window": 21, "num_hidden_layers": 7, "num_kv_shared_layers": 3, "global_head_dim": 32,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"] * 3 + ["full_attention"],
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB, "use_double_wide_mlp": True,
        "final_logit_softcapping": 4.0, "tie_word_embeddings": True}),
    "granite": ("Granite", GRANITE),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"sliding_window": 21, "num_hidden_layers": 4,
                        "rope_parameters": {"full_attention": YARN, "sliding_attention": {
                            "rope_type": "default", "rope_theta": 1e4}}}),
    "qwen3moe": ("Qwen3Moe", SMALL | EXPERTS | {"moe_intermediate_size": 40, "norm_topk_prob": True}),
    "olmoe": ("Olmoe", EXPERTS | {"hidden_size": 32, "intermediate_size": 40, "num_key_value_heads": 4}),
    "granitemoe": ("GraniteMoe", GRANITE | EXPERTS | {"hidden_size": 32, "intermediate_size": 40}),
    "granitemoeshared": ("GraniteMoeShared", GRANITE | EXPERTS | {
        "hidden_size": 32, "intermediate_size": 40, "shared_intermediate_size": 56}),
    "gpt-oss": ("GptOss", SMALL | EXPERTS | {"sliding_window": 21, "rope_parameters": YARN | {"truncate": False}}),
    "gpt-oss-mxfp4": ("GptOss", SMALL | EXPERTS | {"sliding_window": 21, "rope_parameters": YARN | {"truncate": False}}),
}


def draw(name, p, hf_name, tied):
    """A weight of the parameter's shape, as a file of f16 matrices holds it."""
    noise = torch.randn(p.shape)
    if "norm" in name:
        if hf_name == "Gemma4" and ("q_norm" in name or "k_norm" in name):
            return 0.15 * noise + 0.5  # There is no other scale of scores.
        return 0.3 * noise + (0.0 if hf_name in ("Gemma2", "Gemma3") else 1.0)
    if p.dim() == 1 or name.endswith("bias"):
        return 0.3 * noise if "sinks" not in name else noise + 3.0
    if "embed" in name:
        spread = p.shape[-1] ** -0.5 if tied else 1.0
    elif hf_name == "GptOss" and p.dim() == 3:
        spread = p.shape[1] ** -0.5
    else:
        spread = p.shape[-1] ** -0.5
    if "q_proj" in name or "k_proj" in name or "qkv" in name:
        spread *= 1.3
    if "router" in name or name.endswith("gate.weight"):
        spread *= 2.0
    return (spread * noise).half().float()


# The values of 4-bit floats, by code (OCP Microscaling Formats 1.0).
FLOAT4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def mxfp4(w):
    """Rows of `w` in blocks of 32: two codes a byte, exponents, and what these stand for."""
    blocks = w.reshape(*w.shape[:-1], -1, 32)
    exponent = torch.floor(torch.log2(blocks.abs().amax(-1).clamp(min=1e-9))) - 2
    codes = (blocks[..., None] / 2.0 ** exponent[..., None, None] - FLOAT4).abs().argmin(-1)
    values = FLOAT4[codes] * 2.0 ** exponent[..., None]
    pairs = codes.to(torch.uint8).reshape(*codes.shape[:-1], 16, 2)
    return pairs[..., 0] | pairs[..., 1] << 4, (exponent + 127).to(torch.uint8), values.reshape(w.shape)


def pack_experts(model, folder):
    """Rounds the experts to MXFP4, and saves them as gpt-oss's files have them."""
    packed = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "experts" in name and not name.endswith("bias"):
                blocks, scales, values = mxfp4(p.transpose(1, 2).contiguous())
                p.copy_(values.transpose(1, 2))
                packed |= {name + "_blocks": blocks, name + "_scales": scales}
            else:
                packed[name] = p.detach().clone()
    path = folder / "model.safetensors"
    model.save_pretrained(folder)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    safetensors.torch.save_file(packed, path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))


def no_tokenizer(self):
    self.gguf_writer.add_tokenizer_model("gpt2")
    self.gguf_writer.add_tokenizer_pre("default")
    self.gguf_writer.add_token_list([chr(0x100 + i) for i in range(VOCAB)])
    self.gguf_writer.add_token_types([1] * VOCAB)


def record(name, out):
    import conversion
    import gguf

    kind, change = MODELS[name]
    config = getattr(hf, kind + ("TextConfig" if kind in ("Gemma3", "Gemma4") else "Config"))(**BASE | change)
    torch.manual_seed(20261127)
    model = getattr(hf, kind + "ForCausalLM")._from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter, p in model.named_parameters():
            p.copy_(draw(parameter, p, kind, config.tie_word_embeddings))
        for name_of, b in model.named_buffers():
            if name_of.endswith("layer_scalar"):
                b.copy_(1 + 0.2 * torch.randn(1))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if "mxfp4" in name:
            pack_experts(model, folder)
        else:
            model.save_pretrained(folder)
        converter = conversion.get_model_class(kind + "ForCausalLM")
        converter.set_vocab = no_tokenizer
        if kind == "Ministral3":
            converter.Ministral3Model.set_vocab = no_tokenizer
        (folder / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": {str(i): i for i in range(VOCAB)}}, "added_tokens": []}))
        converter(folder, gguf.LlamaFileType.MOSTLY_F16, out / f"{name}.gguf", eager=True, model_name=name).write()
    tokens = [(7 + i * i * 31 + i // 9) % VOCAB for i in range(TOKENS)]
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].float()
    print(f"{name}: logits {logits.std():.2f}, largest {logits.abs().max():.2f}")
    text = {"class": kind, "transformers": hf.__version__, "tokens": tokens,
            "logits": logits.numpy().astype("<f4").tobytes().hex()}
    (out / f"{name}.json").write_text(json.dumps(text, indent=0) + "\n")


if __name__ == "__main__":
    converters = pathlib.Path(sys.argv[1])
    sys.path[:0] = [str(converters), str(converters / "gguf-py")]
    out = pathlib.Path(__file__).with_suffix("")
    out.mkdir(exist_ok=True)
    for name in sys.argv[2:] or MODELS:
        record(name, out)
