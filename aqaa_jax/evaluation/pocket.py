"""The pocket model on held-out spoken questions: hearing, thinking and speaking, together and apart.

The judge is pocketsphinx with a closed grammar of all answer sentences; it was not trained here. Every rate comes
with its 95 % interval, and every run with the judge's ceiling on the synthesiser's own answers and with controls
that must fail (silence, shuffled tokens, another question's recording).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from aqaa_jax.data import corpus
from aqaa_jax.data.questions import STYLES, answers, questions, unseen_number_sentences
from aqaa_jax.data.rendering import Clips, render
from aqaa_jax.evaluation import metrics
from aqaa_jax.evaluation.judge import normalize_text, transcribe_many
from aqaa_jax.inference.answer import Aqaa
from aqaa_jax.tokens.interleave import GROUP, GROUP_LINGUISTIC

Say = Callable[[str], None]
BATCH = 25


class PocketEvaluation:
    """One model, one cache folder of rendered speech."""

    def __init__(self, model: Aqaa, cache: str | Path, say: Say, *, questions: int = 200, seed: int = 2024):
        self.model, self.cache, self.say = model, Path(cache), say
        self.questions, self.seed = questions, seed  # training uses other seeds
        self.rate = model.system.config.vocoder.hift.sample_rate
        self.sentences = list(answers())
        self.heard: dict[str, list[str]] = {}  # split -> what the judge heard in the answers
        self.references = self._render(corpus.answer_utterances(), (16000, 22050))

    def run(self, *, transcript_first: bool = False) -> dict[str, Any]:
        """Every figure, as plain JSON values."""
        began = time.monotonic()
        report: dict[str, Any] = {
            split: self.split(split, transcript_first) for split in ("new_voices", "new_questions")
        }
        report["voice_control"] = self.voice_control()
        report["resynthesis"] = self.resynthesis()
        report["controls"] = self.controls()
        report["seconds"] = round(time.monotonic() - began, 1)
        return report

    def split(self, name: str, transcript_first: bool) -> dict[str, Any]:
        """Answers to ``questions`` spoken questions: end to end, and each faculty alone."""
        items = corpus.question_utterances(self.questions, self.seed, name)
        clips = self._render(items)
        texts, wavs, stopped = [], [], []
        for start in range(0, len(items), BATCH):
            batch = [clips[i].wavs[16000] for i in range(start, min(start + BATCH, len(items)))]
            for answer in self.model.ask(batch, sample_rate=16000, transcript_first=transcript_first):
                texts.append(answer.text)
                wavs.append(answer.wav)
                stopped.append(answer.stopped)
            self.say(f"[{name}] answered {len(texts)}/{len(items)}")
        expected = [item.answer for item in items]
        heard = self.heard[name] = self._judge(wavs)
        reference = [self.references[item.answer_id].wavs[22050] for item in items]
        audio = self.model.hear([clips[i].wavs[16000] for i in range(len(items))], 16000)
        asked = [item.utterance.text for item in items]
        transcripts = [r.text for r in self._respond("asr", audio)]
        from_text = [r.text for r in self._respond("tqtaa", asked)]
        families = sorted({item.family for item in items})
        return {
            "text_exact": _rate(metrics.exact_match(texts, expected)),
            "spoken_exact": _rate(metrics.exact_match(heard, expected)),
            "alignment": _rate(metrics.exact_match(heard, texts)),
            "stop_rate": _rate(metrics.proportion(stopped)),
            "length_ratio": _rate(
                metrics.bootstrap([metrics.length_ratio(a, b) for a, b in zip(wavs, reference, strict=True)])
            ),
            "judge_ceiling": _rate(metrics.exact_match(self._judge(reference), expected)),
            "hearing_transcript_exact": _rate(metrics.exact_match(transcripts, asked)),
            "hearing_character_error_rate": round(metrics.character_error_rate(transcripts, asked), 4),
            "thinking_text_exact_from_written_question": _rate(metrics.exact_match(from_text, expected)),
            "text_exact_by_family": {
                f: _rate(metrics.exact_match(*_chosen(texts, expected, [i.family == f for i in items])))
                for f in families
            },
            "text_exact_by_style": {
                s: _rate(metrics.exact_match(*_chosen(texts, expected, [i.style == s for i in items]))) for s in STYLES
            },
        }

    def voice_control(self, pairs: int = 60) -> dict[str, Any]:
        """Does "answer slowly / quickly / in a high / low voice" move rate and median F0 the right way?

        Each styled question is compared with the same question asked plainly by the same voice; pairs whose two
        answers differ in text are left out of the rate (their lengths do not compare) and counted.
        """
        items = [i for i in corpus.question_utterances(pairs * 8, self.seed + 1, "new_voices") if i.style != "neutral"][
            :pairs
        ]
        plain = [_plain(item) for item in items]
        styled_clips, plain_clips = self._render(items), self._render(plain)
        answered = []
        for clips in (styled_clips, plain_clips):
            out = []
            for start in range(0, len(items), BATCH):
                wavs = [clips[i].wavs[16000] for i in range(start, min(start + BATCH, len(items)))]
                out += self.model.ask(wavs, sample_rate=16000)
            answered.append(out)
        right: dict[str, list[bool]] = {style: [] for style in STYLES[1:]}
        sizes: dict[str, list[float]] = {style: [] for style in STYLES[1:]}
        for item, ours, neutral in zip(items, *answered, strict=True):
            if normalize_text(ours.text) != normalize_text(neutral.text) and item.style in ("slow", "fast"):
                continue
            if item.style in ("slow", "fast"):
                change = metrics.speaking_rate(ours.wav, neutral.wav, self.rate)
            else:
                change = metrics.median_f0(ours.wav, self.rate) / metrics.median_f0(neutral.wav, self.rate)
            up = item.style in ("fast", "high")
            right[item.style].append(bool(change > 1.0) if up else bool(change < 1.0))
            sizes[item.style].append(float(change))
        return {
            "right_direction": _rate(metrics.proportion([r for rs in right.values() for r in rs])),
            "by_style": {s: _rate(metrics.proportion(r)) for s, r in right.items()},
            "median_ratio_to_neutral": {s: round(float(np.nanmedian(v)), 3) if v else None for s, v in sizes.items()},
        }

    def resynthesis(self, limit: int = 100) -> dict[str, Any]:
        """The codec and vocoder alone: tokens of true speech back to speech, judged."""
        chosen = list(range(0, len(self.references), max(1, len(self.references) // limit)))[:limit]
        known = [corpus.answer_utterances()[i] for i in chosen]
        numbers = list(unseen_number_sentences())
        unseen = self._render(corpus.spoken_in_answer_voice(numbers), (16000, 22050))
        known_wavs = self._resynthesise([self.references[i].wavs[16000] for i in chosen])
        unseen_wavs = self._resynthesise([unseen[i].wavs[16000] for i in range(len(unseen))])
        natural = [unseen[i].wavs[22050] for i in range(len(unseen))]
        return {
            "known_answers": _rate(metrics.exact_match(self._judge(known_wavs), [k.answer for k in known])),
            "known_answers_ceiling": _rate(
                metrics.exact_match(
                    self._judge([self.references[i].wavs[22050] for i in chosen]), [k.answer for k in known]
                )
            ),
            "unseen_numbers": _rate(metrics.exact_match(self._judge(unseen_wavs, numbers), numbers)),
            "unseen_numbers_ceiling": _rate(metrics.exact_match(self._judge(natural, numbers), numbers)),
        }

    def controls(self, limit: int = 100) -> dict[str, Any]:
        """What must not be recognised as the right answer; ``another_question`` needs ``split("new_voices")`` before.

        ``shuffled_tokens`` permutes each stream token by token. ``shuffled_groups`` keeps every 120 ms group whole, and
        with it most short words: it is reported beside, as a measure of how much order the judge needs.
        """
        rng = np.random.default_rng(self.seed)
        items = corpus.question_utterances(self.questions, self.seed, "new_voices")
        expected = [item.answer for item in items]
        others = [(i + 1 + int(rng.integers(0, len(items) - 1))) % len(items) for i in range(len(items))]
        swapped = [(j, i) for i, j in enumerate(others) if items[j].answer != items[i].answer]
        chosen = [self.references[item.answer_id] for item in items[:limit]]
        tokens = [t.reshape(-1, GROUP) for t in self._tokens([r.wavs[16000] for r in chosen])]
        groups = [rng.permutation(t) for t in tokens]
        shuffled = [
            np.concatenate(
                [rng.permutation(part.ravel()).reshape(part.shape) for part in np.split(t, [GROUP_LINGUISTIC], 1)], 1
            )
            for t in tokens
        ]
        silence = self._judge([np.zeros(self.rate, np.float32)] * 5)
        return {
            "silence": _rate(metrics.exact_match(silence, expected[:5])),
            "shuffled_tokens": self._rate_of_codes(shuffled, expected),
            "shuffled_groups": self._rate_of_codes(groups, expected),
            "another_question": _rate(
                metrics.exact_match(
                    [self.heard["new_voices"][j] for j, _ in swapped], [expected[i] for _, i in swapped]
                )
            ),
        }

    def _rate_of_codes(self, tokens: Sequence[np.ndarray], expected: Sequence[str]) -> dict[str, float | int]:
        """How often the speech of these groups of codes is judged to be what was expected."""
        heard = self._judge(self._speak([t.ravel() for t in tokens]))
        return _rate(metrics.exact_match(heard, expected[: len(heard)]))

    def _render(self, items: Sequence[corpus.Item], rates: Sequence[int] = (16000,)) -> Clips:
        return render(items, self.cache, rates)

    def _judge(self, wavs: Sequence[np.ndarray], sentences: Sequence[str] | None = None) -> list[str]:
        return transcribe_many(sentences or self.sentences, wavs, self.rate)

    def _respond(self, task: str, contents: Sequence[Any]) -> list[Any]:
        batches = [contents[i : i + BATCH] for i in range(0, len(contents), BATCH)]
        return [r for batch in batches for r in self.model.respond(task, batch)]

    def _tokens(self, wavs: Sequence[np.ndarray]) -> list[np.ndarray]:
        tail = np.zeros(round(corpus.TAIL_SECONDS * 16000), np.float32)
        ids = self.model.hear([np.concatenate([w, tail]) for w in wavs], 16000)
        return [np.asarray(self.model.system.vocab.vocoder_codes(i)) for i in ids]

    def _resynthesise(self, wavs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self._speak(self._tokens(wavs))

    def _speak(self, tokens: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [w for i in range(0, len(tokens), BATCH) for w in self.model.speak(tokens[i : i + BATCH])]


def _plain(item: corpus.Item) -> corpus.Item:
    """The same question by the same voice without its style request."""
    question = next(q for q in questions() if q.key == item.question)
    spoken = replace(item.utterance, text=question.phrasings[item.phrasing])
    neutral = corpus.answer_id(item.answer, "neutral")
    return replace(item, id=f"{item.id}-plain", utterance=spoken, style="neutral", answer_id=neutral)


def _chosen(a: Sequence[str], b: Sequence[str], keep: Sequence[bool]) -> tuple[list[str], list[str]]:
    return [x for x, k in zip(a, keep, strict=True) if k], [x for x, k in zip(b, keep, strict=True) if k]


def _rate(estimate: metrics.Estimate) -> dict[str, float | int]:
    return {
        "value": round(float(estimate.value), 4),
        "low": round(float(estimate.low), 4),
        "high": round(float(estimate.high), 4),
        "n": int(estimate.n),
    }


def summary(report: dict[str, Any]) -> str:
    """The report as a table to read."""
    lines = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and "value" in value:
            figure = f"{value['value']:7.3f}  [{value['low']:.3f}, {value['high']:.3f}]  n={value['n']}"
            lines.append(f"{prefix:60} {figure}")
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            lines.append(f"{prefix:60} {json.dumps(value)}")

    walk("", report)
    return "\n".join(lines)
