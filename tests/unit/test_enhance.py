"""Writing prompts out: reproducible, recorded, cleaned."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import mlx.core as mx
import pytest

from mlx_ltx2.demo.tiny_gemma import write_tiny_gemma
from mlx_ltx2.errors import RequestError
from mlx_ltx2.generate import LTX2Pipeline
from mlx_ltx2.media.metadata import read_metadata
from mlx_ltx2.memory import PeakReport
from mlx_ltx2.progress import SilentProgress
from mlx_ltx2.stages.enhance import IMAGE_TO_VIDEO, TEXT_TO_VIDEO, _sampled, clean, enhance_prompt
from mlx_ltx2.stages.plan import EnhanceUse
from mlx_ltx2.weights.text_encoder import load_text_encoder
from tests.conftest import SMALL
from tests.fixtures.media_files import corners


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    words = ("kite", "beach", "slowly", "camera", "waves")
    return load_text_encoder(write_tiny_gemma(tmp_path_factory.mktemp("gemma"), words=words, sliding_window=8))


def written(gemma, seed: int = 1, temperature: float = 0.7, max_tokens: int = 24, **more) -> str:
    use = EnhanceUse(max_tokens, temperature, more.pop("image", None))
    return enhance_prompt("a kite", use, seed, lambda: gemma, more.pop("progress", Notes()), PeakReport(), **more)


def test_the_seed_decides_the_text(gemma) -> None:
    mx.random.seed(0)
    before = mx.random.uniform(shape=(2,)).tolist()
    mx.random.seed(0)
    texts = [written(gemma, seed, system="Write.") for seed in (1, 1, 2, 1 << 40)]
    assert texts[0] == texts[1] and len(set(texts)) == 3
    assert mx.random.uniform(shape=(2,)).tolist() == before, "the global generator was touched"


def test_temperature_zero_takes_the_likeliest_word(gemma) -> None:
    """The cached loop agrees with a full forward pass for every token, beyond the sliding window too."""
    prompt = gemma.tokenizer.chat("Write.", "user prompt: a kite")
    ids = list(prompt)
    for step, token in enumerate(islice(_sampled(gemma, prompt, 0.0, 0), 12)):
        logits = gemma.model(mx.array([ids]))[0, -1].astype(mx.float32)
        assert float(logits[token]) >= float(logits.max()) - 1e-3, step
        ids.append(token)
    assert len(ids) > len(prompt)
    assert written(gemma, 1, 0.0, system="Write.") == written(gemma, 2, 0.0, system="Write.")


def test_length_is_limited_and_the_turn_can_end(gemma, monkeypatch) -> None:
    lengths = []
    decode = type(gemma.tokenizer).decode
    monkeypatch.setattr(
        type(gemma.tokenizer), "decode", lambda self, ids: lengths.append(len(ids)) or decode(self, ids)
    )
    written(gemma, max_tokens=3)
    prompt = gemma.tokenizer.chat("Write.", "user prompt: a kite")
    first = next(_sampled(gemma, prompt, 0.0, 0))
    ending = replace(gemma, tokenizer=replace(gemma.tokenizer, end_of_turn_id=first))
    assert written(ending, temperature=0.0, system="Write.") == "a kite"
    assert lengths == [3, 0]


def test_instructions_differ_for_an_image_and_that_nobody_looks_is_said(gemma, monkeypatch) -> None:
    asked = []
    chat = type(gemma.tokenizer).chat

    def noted(self, system, user):
        asked.append((system, user))
        return chat(self, system, user)

    monkeypatch.setattr(type(gemma.tokenizer), "chat", noted)
    notes = Notes()
    written(gemma, max_tokens=2, progress=notes)
    assert not notes.said or "stays as it is" in notes.said[0]
    written(gemma, max_tokens=2, image="photo.png", progress=notes)
    written(gemma, max_tokens=2, system="Shout.")
    assert [system for system, _ in asked] == [TEXT_TO_VIDEO, IMAGE_TO_VIDEO, "Shout."]
    assert asked[0][1] == "user prompt: a kite"
    assert any("from its text alone" in note for note in notes.said)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("\u201cGo!\u201d she says \u2014 it\u2019s late\u2026", '"Go!" she says - it\'s late...'),
        ("**Scene:**\n\n A  kite\u00a0flies", "Scene:** A kite flies"),
        ("1. - A kite", "A kite"),
        ("\u00c9t\u00e9 au bord", "\u00c9t\u00e9 au bord"),
        ("12 \ufffd\x07 --", ""),
        ("", ""),
    ],
)
def test_cleaning(raw, text) -> None:
    assert clean(raw) == text


def test_a_text_without_letters_leaves_the_prompt(gemma, monkeypatch) -> None:
    monkeypatch.setattr(type(gemma.tokenizer), "decode", lambda self, ids: " 123 ")
    notes = Notes()
    assert written(gemma, progress=notes) == "a kite"
    assert "stays as it is" in notes.said[-1]


def test_generate_records_both_prompts_and_rerun_agrees(tiny_model, run_cli, tmp_path) -> None:
    out, again = tmp_path / "a.gif", tmp_path / "b.gif"
    base = ("generate", "--model", tiny_model(), "-p", "a kite", "--no-audio", *SMALL)
    code, _, err = run_cli(*base, "-o", out, "--enhance-prompt", "--max-tokens", 9, "--temperature", 0.9)
    assert code == 0, err
    stored = read_metadata(out)
    assert stored["prompt"] == "a kite" and stored["enhanced_prompt"] not in ("", "a kite")
    assert '"max_tokens":9' in stored["plan"] and '"temperature":0.9' in stored["plan"]
    assert run_cli("rerun", out, "-o", again)[0] == 0
    assert again.read_bytes() == out.read_bytes()


def test_the_command_prints_the_text_alone(tiny_model, tiny_sources, run_cli, tmp_path) -> None:
    from PIL import Image

    photo, rules = tmp_path / "a.png", tmp_path / "rules.txt"
    Image.fromarray(corners(32, 32)).save(photo)
    rules.write_text("Write one word.\n", "utf-8")
    base = ("enhance", "--prompt", "a kite", "--max-tokens", 8, "--seed", 3)
    code, first, err = run_cli(*base, "--model", tiny_model())
    assert code == 0 and len(first.splitlines()) == 1, err
    assert run_cli(*base, "--text-encoder", tiny_sources() / "gemma-3-tiny")[1] == first
    code, _, err = run_cli(*base, "--model", tiny_model(), "--image", photo, "--progress", "bar")
    assert code == 0 and "from its text alone" in err
    assert run_cli(*base, "--model", tiny_model(), "--system-prompt", rules)[0] == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--prompt", " "), 2, "empty"),
        (("--prompt", "x", "--max-tokens", "0"), 2, "max_tokens"),
        (("--prompt", "x", "--temperature", "-1"), 2, "temperature"),
        (("--prompt", "x", "--system-prompt", "missing.txt"), 2, "missing.txt"),
        (("--prompt", "x", "--image", "missing.png"), 1, "missing.png"),
        (("--prompt", "x", "--text-encoder", "./missing"), 3, "missing"),
    ],
)
def test_bad_input_of_the_command(options, code, message, tiny_model, run_cli) -> None:
    got, out, err = run_cli("enhance", "--model", tiny_model(), *options)
    assert got == code and message in err and not out


def test_bad_settings_are_refused_before_anything_loads(tiny_model) -> None:
    pipe = LTX2Pipeline.from_pretrained(tiny_model())
    for options in ({"max_tokens": 0}, {"temperature": float("nan")}, {"temperature": -0.1}):
        with pytest.raises(RequestError):
            pipe.plan("x", enhance_prompt=True, **options)
