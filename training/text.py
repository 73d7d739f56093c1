"""The tiny Gemma 3: a tokenizer and a text model trained to continue captions and to name what they describe.

After this it is frozen; the connectors and the transformer learn to read its hidden states.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F
from transformers import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextModel

from training.optim import Clock, Optimiser
from training.world import COLOURS, KINDS, MOTIONS, Scene, caption, sample_scene, scenes

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
BOS = 2
CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "max_position_embeddings": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
}
LAYER_TYPES = ["sliding_attention", "sliding_attention", "full_attention"]
STATES = CONFIG["num_hidden_layers"] + 1
NEGATIVE = "blurry, low quality, distorted, noise, flicker, watermark, text, ugly, deformed, static, worst quality"


def train_tokenizer(path: Path) -> Tokenizer:
    """A byte-level BPE in which every word of the captions is one token; it encodes any text."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    rng = np.random.default_rng(0)
    corpus = [caption(s, rng) for s in scenes(0, 6000, "any", two=0.3)]
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus + [NEGATIVE] * 50, trainer)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    return tokenizer


def gemma(vocabulary: int) -> Gemma3TextModel:
    """The text model, randomly initialised."""
    config = Gemma3TextConfig(
        vocab_size=vocabulary,
        layer_types=LAYER_TYPES,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        **CONFIG,
    )
    config._attn_implementation = "sdpa"
    return Gemma3TextModel(config)


def encode_prompts(tokenizer: Tokenizer, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids (B, T) with BOS first and their mask. A causal model does not see padding on the right."""
    rows = [[BOS, *tokenizer.encode(p.strip(), add_special_tokens=False).ids] for p in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    return ids, mask


@torch.no_grad()
def hidden_states(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """All states (B, T, D, layers + 1), the embedding first, the last after the final norm."""
    return torch.stack(model(input_ids=ids, output_hidden_states=True).hidden_states, dim=-1)


def labels(pool: list[Scene]) -> torch.Tensor:
    """Kind, colour and motion of both shapes, (B, 6); the last class of the second shape means there is none."""
    rows = []
    for scene in pool:
        row = []
        for i in range(2):
            for values, key in ((KINDS, "kind"), (tuple(COLOURS), "colour"), (MOTIONS, "motion")):
                row.append(values.index(getattr(scene.shapes[i], key)) if i < len(scene.shapes) else len(values))
        rows.append(row)
    return torch.tensor(rows)


def train(out: Path, steps: int, seed: int = 0) -> None:
    """Train tokenizer and model; writes `gemma/`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = train_tokenizer(out / "gemma")
    model = gemma(tokenizer.get_vocab_size())
    sizes = [len(KINDS) + 1, len(COLOURS) + 1, len(MOTIONS) + 1] * 2
    head = nn.Linear(CONFIG["hidden_size"], sum(sizes))
    both = nn.ModuleDict({"model": model, "head": head})
    optimiser = Optimiser(both.named_parameters(), 3e-3, ends=("embed_tokens", "head"))
    clock = Clock("gemma", out, steps=steps)

    def losses(pool: list[Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids, mask = encode_prompts(tokenizer, [caption(s, rng) for s in pool])
        states = model(input_ids=ids).last_hidden_state
        logits = states[:, :-1] @ model.embed_tokens.weight.T
        following = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        lm = F.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=-100)
        last = states[torch.arange(len(pool)), mask.sum(1) - 1]
        parts = head(last).split(sizes, dim=-1)
        truth = labels(pool)
        named = sum(F.cross_entropy(p, truth[:, i]) for i, p in enumerate(parts)) / 6
        right = torch.stack([p.argmax(-1) == truth[:, i] for i, p in enumerate(parts)]).float().mean()
        return lm, named, right

    while clock.running():
        lm, named, _ = losses([sample_scene(rng, "train", two=0.4) for _ in range(48)])
        (lm + named).backward()
        optimiser.step(clock.factor())
        if clock.due(100):
            with torch.no_grad():
                _, _, right = losses(scenes(clock.step, 128, "held", two=0.4))
            clock.report(lm=lm, named=named, held_out_right=right)
    torch.save(model.state_dict(), out / "gemma" / "model.pt")
    (out / "gemma" / "vocabulary.json").write_text(json.dumps({"size": tokenizer.get_vocab_size()}))


def load(out: Path) -> tuple[Tokenizer, nn.Module]:
    """The trained tokenizer and frozen model."""
    tokenizer = Tokenizer.from_file(str(out / "gemma" / "tokenizer.json"))
    model = gemma(tokenizer.get_vocab_size())
    model.load_state_dict(torch.load(out / "gemma" / "model.pt"))
    return tokenizer, model.eval().requires_grad_(False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--steps", type=int, default=500)
    a = parser.parse_args()
    train(a.out, a.steps)
