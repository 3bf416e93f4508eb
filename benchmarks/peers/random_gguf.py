"""Write a small Llama with random weights as GGUF, with a tokenizer of its own.

python random_gguf.py FILE.gguf

It says nothing sensible, but llama.cpp's servers load it like any other model: under 1 MB, in a blink.
Greedily it says words of three letters and never ends; the single bytes, which such a vocabulary must have,
are never the likeliest, since servers hold back what is no UTF-8 yet.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import gguf
import numpy as np

HIDDEN, LAYERS, HEADS, FEED_FORWARD, CONTEXT = 64, 2, 4, 128, 32_768
SPECIAL = (
    ("<unk>", gguf.TokenType.UNKNOWN),
    ("<s>", gguf.TokenType.CONTROL),
    ("</s>", gguf.TokenType.CONTROL),
    *((f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)),
)
WORDS = tuple(
    (f"\u2581{''.join(letters)}", gguf.TokenType.NORMAL)
    for letters in itertools.product("bdfklmnprst", "aeiou", "lnrst")
)


def write(file: Path, seed: int = 0) -> None:
    """Write the file; equal seeds give equal weights."""
    tokens = [*SPECIAL, *WORDS]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("random")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,), "output": (len(tokens), HIDDEN)}
    for layer in range(LAYERS):
        block = {f"attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        block |= {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "ffn_down": (HIDDEN, FEED_FORWARD)}
        block |= {"ffn_gate": (FEED_FORWARD, HIDDEN), "ffn_up": (FEED_FORWARD, HIDDEN)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    random = np.random.default_rng(seed)
    for name, shape in shapes.items():
        weights = np.ones(shape) if len(shape) == 1 else random.normal(0.0, HIDDEN**-0.5, shape)
        if name == "output":
            weights[: len(SPECIAL)] = 0.0
        writer.add_tensor(f"{name}.weight", weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("file", type=Path, help="where to write it")
    write(arguments.parse_args().file)
