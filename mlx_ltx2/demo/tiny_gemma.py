"""A tiny Gemma 3 folder with random weights, laid out as Hugging Face writes one.

It stands in for the 12B text encoder in the demo checkpoint and in tests: same config keys, tensor names and
tokenizer rules, a few hundred kilobytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

PAD, EOS, BOS, UNK = 0, 1, 2, 3
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
_PIECES = ("\n", "▁", *map(chr, range(33, 127)))


def write_tiny_gemma(
    folder: str | Path,
    *,
    width: int = 64,
    layers: int = 7,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    inner: int = 128,
    sliding_window: int = 32,
    rope_factor: float | None = 8.0,
    words: Sequence[str] = (),
    seed: int = 0,
    dtype: Literal["F32", "BF16"] = "F32",
) -> Path:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json; returns the folder.

    layers: every sixth attends globally, so 7 has both kinds. inner: width of the feed-forward.
    rope_factor: linear rotary scaling of the global layers, None for none. words: get a token of their own,
    alone and after a space; all other text falls apart into characters and bytes. The same arguments give the
    same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _vocabulary(words)
    text = {
        "model_type": "gemma3_text",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None if rope_factor is None else {"factor": rope_factor, "rope_type": "linear"},
        "sliding_window": sliding_window,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 131072,
        "hidden_activation": "gelu_pytorch_tanh",
        "vocab_size": len(vocabulary),
    }
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "text_config": text,
        "torch_dtype": "float32" if dtype == "F32" else "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    tensors = {name: _random(name, shape, seed) for name, shape in gemma_shapes(text)}
    _write_safetensors(folder / "model.safetensors", tensors, dtype)
    _write_tokenizer(folder, vocabulary)
    return folder


def gemma_shapes(text: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a Gemma 3 file with this text config."""
    width, inner, head_dim = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    queries, keys = text["num_attention_heads"] * head_dim, text["num_key_value_heads"] * head_dim
    root = "language_model.model."
    yield f"{root}embed_tokens.weight", (text["vocab_size"], width)
    for layer in range(text["num_hidden_layers"]):
        at = f"{root}layers.{layer}."
        yield f"{at}self_attn.q_proj.weight", (queries, width)
        yield f"{at}self_attn.k_proj.weight", (keys, width)
        yield f"{at}self_attn.v_proj.weight", (keys, width)
        yield f"{at}self_attn.o_proj.weight", (width, queries)
        yield f"{at}self_attn.q_norm.weight", (head_dim,)
        yield f"{at}self_attn.k_norm.weight", (head_dim,)
        for name, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            yield f"{at}mlp.{name}_proj.weight", shape
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{at}{name}_layernorm.weight", (width,)
    yield f"{root}norm.weight", (width,)


def _random(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return np.float32(0.2) * values  # Gemma multiplies by 1 + weight
    result: np.ndarray = values / np.sqrt(np.float32(shape[1]))
    return result


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str) -> None:
    """numpy has no bfloat16 and the library's numpy face refuses it, so the format is written out here."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chunks, end = [], 0
    for name, values in tensors.items():
        chunks.append(_bytes(values, dtype))
        begin, end = end, end + len(chunks[-1])
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(chunks))


def _bytes(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        values = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even
    return values.tobytes()


def _vocabulary(words: Sequence[str]) -> list[str]:
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *_PIECES]
    for word in words:
        tokens += [word, f"▁{word}"]
    return list(dict.fromkeys(tokens))


def _write_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {token: index for index, token in enumerate(vocabulary)}
    model = models.BPE(ids, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True, ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
