"""Prompt -> token ids, by the rules of the official text encoder.

Whitespace around the prompt goes, BOS stands in front exactly once, nothing stands behind, 1024 tokens stay.
There is no chat template for encoding; `chat` has Gemma's for prompt enhancement.
Reference: ltx_core.text_encoders.gemma.tokenizer (1.2.0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_ltx2.errors import RequestError, WeightsError
from mlx_ltx2.states import PromptTokens

MAX_TOKENS = 1024
_SPARE_ROWS = 64
"""Gemma pads its embedding to a multiple of so many rows: 262208 rows for 262145 tokens."""


@dataclass(frozen=True)
class PromptTokenizer:
    """encode_text: text -> ids with no special tokens added. ids_end: largest id + 1."""

    encode_text: Callable[[str], Sequence[int]]
    decode_ids: Callable[[Sequence[int]], str]
    bos_id: int
    end_of_turn_id: int | None
    ids_end: int

    @classmethod
    def from_folder(cls, folder: str | Path) -> PromptTokenizer:
        """Tokenizer of a Gemma 3 folder: tokenizer.json, else tokenizer.model.

        Raises: WeightsError if there is none, or it is not Gemma's.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            return _from_json(folder / "tokenizer.json")
        if (folder / "tokenizer.model").is_file():
            return _from_sentencepiece(folder)
        raise WeightsError(
            f"{folder}: neither tokenizer.json nor tokenizer.model is there. Download the Gemma 3 folder "
            "again with its tokenizer files."
        )

    def __call__(self, prompt: str, limit: int = MAX_TOKENS) -> PromptTokens:
        """Tokens of a prompt, at most `limit` with BOS; the rest is counted in `cut` and quoted in `cut_text`.

        Raises: RequestError if the prompt is empty or blank.
        """
        text = prompt.strip()
        if not text:
            raise RequestError("the prompt is empty; describe the video in a few words.")
        ids = list(self.encode_text(text))
        while ids and ids[0] == self.bos_id:
            ids.pop(0)
        ids = [self.bos_id, *ids]
        lost = ids[limit:]
        return PromptTokens(tuple(ids[:limit]), len(lost), self.decode_ids(lost) if lost else "")

    def nothing(self) -> PromptTokens:
        """Tokens of no text at all, for guidance away from the unprompted."""
        return PromptTokens((self.bos_id,))

    def chat(self, system: str, user: str) -> tuple[int, ...]:
        """Ids of Gemma's chat template for one user turn, the model's turn opened. The system text stands in
        front of the user's, since Gemma 3 has no system role."""
        text = f"<start_of_turn>user\n{system.strip()}\n\n{user.strip()}<end_of_turn>\n<start_of_turn>model\n"
        return (self.bos_id, *self.encode_text(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        return self.decode_ids(ids)

    def check_fits(self, rows: int, where: str | Path) -> None:
        """Raise WeightsError unless this is the tokenizer of an embedding of `rows` rows."""
        if self.ids_end > rows:
            raise WeightsError(
                f"{where}: the tokenizer has ids up to {self.ids_end - 1} and the embedding {rows} rows; "
                "they belong to different models. Download the folder again."
            )
        if rows - self.ids_end > max(_SPARE_ROWS, rows // 100):
            raise WeightsError(
                f"{where}: the tokenizer has {self.ids_end} ids and the embedding {rows} rows; the "
                "tokenizer is of another model. Use the tokenizer files of the Gemma 3 folder."
            )


def _from_json(path: Path) -> PromptTokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
        raise WeightsError(f"{path}: cannot be read ({error}). Download it again.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    return PromptTokenizer(
        encode_text=encode,
        decode_ids=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True),
        bos_id=_required(tokenizer.token_to_id("<bos>"), path),
        end_of_turn_id=tokenizer.token_to_id("<end_of_turn>"),
        ids_end=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
    )


def _from_sentencepiece(folder: Path) -> PromptTokenizer:
    from transformers import AutoTokenizer

    path = folder / "tokenizer.model"
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for a folder it cannot use
        raise WeightsError(f"{path}: cannot be read ({error}). Download it again.") from error
    vocabulary = tokenizer.get_vocab()

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    return PromptTokenizer(
        encode_text=encode,
        decode_ids=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        bos_id=_required(vocabulary.get("<bos>"), path),
        end_of_turn_id=vocabulary.get("<end_of_turn>"),
        ids_end=max(vocabulary.values()) + 1,
    )


def _required(bos_id: int | None, path: Path) -> int:
    if bos_id is None:
        raise WeightsError(
            f"{path}: it has no token <bos>, so it is not Gemma's. Use the tokenizer of the Gemma 3 folder."
        )
    return bos_id
