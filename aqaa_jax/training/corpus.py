"""The spoken corpus of a recipe: rendered once, then tokenized by the trained tokenizers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from aqaa_jax.checkpoint.files import load_model
from aqaa_jax.checkpoint.folder import TEXT_MODEL
from aqaa_jax.codec.tokenizer import DualTokenizer
from aqaa_jax.data import corpus
from aqaa_jax.data.questions import STYLES, questions, styled, training_questions
from aqaa_jax.data.rendering import Clips, render
from aqaa_jax.data.tasks import save_audio
from aqaa_jax.data.words import general_text
from aqaa_jax.parts import abstract
from aqaa_jax.tokens.interleave import weave_audio
from aqaa_jax.tokens.text import TextTokenizer, train_pocket
from aqaa_jax.tokens.vocab import Vocab
from aqaa_jax.training.config import RecipeConfig

SETS = ("codec", "voice", "answers", "questions", "held_out_speech")
SPOKEN = ("questions", "answers", "voice")  # the sets the decoder learns from
HELD_OUT = 400  # spoken questions in new voices that watch the tokenizers
BOTH_RATES = (16000, 22050)


def items(recipe: RecipeConfig, name: str) -> list[corpus.Item]:
    """The items of one of ``SETS``: a pure function of the recipe."""
    c = recipe.corpus
    if name == "codec":
        return corpus.codec_utterances(c.codec_utterances, c.seed)
    if name == "voice":
        return corpus.voice_utterances(c.voice_utterances, c.seed)
    if name == "answers":
        return corpus.answer_utterances()
    if name == "questions":
        return [*corpus.question_utterances(c.questions, c.seed), *corpus.changing_utterances(c.changing, c.seed)]
    if name == "held_out_speech":
        return corpus.question_utterances(HELD_OUT, c.seed + 1, "new_voices")
    raise ValueError(f"unknown set {name!r}; expected one of {', '.join(SETS)}")


def clips(recipe: RecipeConfig, run_dir: Path, name: str, say: Callable[[str], None] | None = None) -> Clips:
    """The audio of a set, rendered now where it is not on disk yet."""
    rates = BOTH_RATES if name in ("voice", "answers") else BOTH_RATES[:1]
    began, last = time.monotonic(), [0.0]

    def progress(done: int, total: int) -> None:
        now = time.monotonic()
        if say and (now - last[0] > 10 or done == total):
            last[0] = now
            rate = done / max(now - began, 1e-9)
            say(
                f"[corpus] {name} {done}/{total}  {rate:.0f} utterances/s  ETA {(total - done) / max(rate, 1e-9):.0f} s"
            )

    return render(items(recipe, name), run_dir / "speech", rates, recipe.corpus.workers, progress)


def render_corpus(recipe: RecipeConfig, run_dir: Path, say: Callable[[str], None]) -> None:
    """Render every set and train the text tokenizer; a run that goes on with a model's decoder has its tokenizer."""
    for name in SPOKEN if recipe.start else SETS:
        clips(recipe, run_dir, name, say)
    if (run_dir / "corpus" / TEXT_MODEL).exists():
        return
    train_pocket(_texts(recipe), run_dir / "corpus" / TEXT_MODEL, Vocab(recipe.system.vocab), size=recipe.text_pieces)


def text_tokenizer(recipe: RecipeConfig, run_dir: Path) -> TextTokenizer:
    return TextTokenizer.load(run_dir / "corpus" / TEXT_MODEL, Vocab(recipe.system.vocab))


def _texts(recipe: RecipeConfig) -> list[str]:
    """Text to fit the pieces to: role headers, training questions in every style, every answer, general sentences.

    The domain's own sentences count several times, so that its words become whole pieces before rare ones do.
    """
    rng = random.Random(recipe.corpus.seed)
    headers = ["human", "assistant", "system"] * 400
    asked = [
        styled(phrasing, style, rng.randrange(4))
        for q in training_questions()
        for phrasing in q.phrasings
        for style in STYLES
    ]
    answered = [q.answer for q in questions()]
    return [*headers, *asked * 2, *answered * 4, *(general_text(rng) for _ in range(2000))]


def dual_tokenizer(recipe: RecipeConfig, run_dir: Path) -> DualTokenizer:
    """The two trained tokenizers of a run."""
    parts = (
        load_model(run_dir / name / f"{name}.safetensors", abstract(recipe.system, name))
        for name in ("linguistic", "semantic")
    )
    return DualTokenizer.of(recipe.system.tokenizer, *parts)


def tokenize(
    tokenizer: DualTokenizer, wavs: Sequence[np.ndarray], vocab: Vocab, *, tail: float = 0.0, batch: int = 64
) -> list[np.ndarray]:
    """Woven ids of 16 kHz waveforms, ``tail`` seconds of silence appended to each."""
    silence = np.zeros(round(tail * 16000), np.float32)
    out: list[np.ndarray] = []
    for start in range(0, len(wavs), batch):
        padded = [np.concatenate([w, silence]) for w in wavs[start : start + batch]]
        out += [weave_audio(c.linguistic, c.semantic, vocab) for c in tokenizer.encode(padded)]
    return out


def tokenize_corpus(recipe: RecipeConfig, run_dir: Path, say: Callable[[str], None]) -> None:
    """Audio ids of the questions, the answers and the answer voice, to ``tokenize/*.npz``."""
    tokenizer, vocab = dual_tokenizer(recipe, run_dir), Vocab(recipe.system.vocab)
    for name in SPOKEN:
        path, began = run_dir / "tokenize" / f"{name}.npz", time.monotonic()
        if path.exists():
            continue
        spoken = clips(recipe, run_dir, name)
        audio: list[np.ndarray] = []
        for start in range(0, len(spoken), 256):
            wavs = [spoken[i].wavs[16000] for i in range(start, min(start + 256, len(spoken)))]
            audio += tokenize(tokenizer, wavs, vocab, tail=0.0 if name == "questions" else corpus.TAIL_SECONDS)
            rate = len(audio) / (time.monotonic() - began)
            say(f"[tokenize] {name} {len(audio)}/{len(spoken)}  {rate:.0f} utterances/s")
        save_audio(path, audio)
