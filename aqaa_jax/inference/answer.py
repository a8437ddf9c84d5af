"""A spoken question in, a spoken answer out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, overload

import jax
import numpy as np

from aqaa_jax.config import SamplingConfig
from aqaa_jax.dsp import wav as wavs
from aqaa_jax.inference.generate import generate
from aqaa_jax.inference.system import System, load_system
from aqaa_jax.tokens import interleave, prompt
from aqaa_jax.tokens.vocab import EOT

Question = str | Path | np.ndarray


@dataclass(frozen=True)
class Answer:
    """What came back: ``wav`` float32 at ``sample_rate``, its ``text``, and how it came about."""

    text: str
    wav: np.ndarray
    sample_rate: int
    heard: str = ""  # transcript, where the model was asked to write one first
    stopped: bool = True  # False: the length limit cut the answer
    question_seconds: float = 0.0
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # generated ids
    audio_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # woven, 0 ... 5,119
    timings: dict[str, float] = field(default_factory=dict)  # seconds per part, for the whole batch

    @property
    def seconds(self) -> float:
        return len(self.wav) / self.sample_rate

    def save(self, path: str | Path) -> None:
        """Write the waveform as 16-bit PCM, in one step."""
        wavs.write(path, self.wav, self.sample_rate)


class Response(NamedTuple):
    """What the decoder wrote for one prompt, taken apart; ``audio_tokens`` are woven 2:3 groups, 0 ... 5,119."""

    text: str
    heard: str
    audio_tokens: np.ndarray
    tokens: np.ndarray
    stopped: bool


class Aqaa:
    """A loaded system. ``Aqaa.load()`` gives the shipped pocket model, ``Aqaa.load(folder)`` any other."""

    def __init__(self, system: System):
        self.system = system

    @classmethod
    def load(cls, model: str | Path | None = None, *, int8: bool = False) -> Aqaa:
        """Load a model folder; raises ``FileNotFoundError`` or ``ValueError`` naming file and tensor.

        ``int8`` rounds the decoder's matrices to int8: a large decoder answers faster, most of all on a CPU.
        """
        system = load_system(model)
        return cls(system._replace(decoder=system.decoder.int8()) if int8 else system)

    @overload
    def ask(self, question: Question, *, sample_rate: int | None = None, **options) -> Answer: ...
    @overload
    def ask(self, question: Sequence[Question], *, sample_rate: int | None = None, **options) -> list[Answer]: ...
    def ask(self, question, *, sample_rate=None, seed=0, transcript_first=False, sampling=None, speak=True):
        """Answer a wav file, a float array (with ``sample_rate``), or a list of either (batched).

        ``transcript_first`` lets the model write down the question before it answers (not how AQAA answers; an
        option). ``speak=False`` leaves out the vocoder. The same ``seed`` gives the same answer.
        Raises ``ValueError`` or ``FileNotFoundError`` naming the input and what is wrong with it.
        """
        many = isinstance(question, (list, tuple))
        sampling = self.system.config.sampling if sampling is None else sampling
        loaded = [self._read(q, sample_rate, i) for i, q in enumerate(question if many else [question])]
        task = "transcript_first" if transcript_first else "aqtaa"
        answers = self._answer(loaded, seed, task, sampling, speak)
        return answers if many else answers[0]

    def _read(self, question: Question, sample_rate: int | None, index: int) -> tuple[np.ndarray, int]:
        if isinstance(question, (str, Path)):
            wav, rate = wavs.read(question)
            name = str(question)
        else:
            if sample_rate is None:
                raise ValueError("an array needs its sample_rate")
            wav, rate, name = np.asarray(question, np.float32), int(sample_rate), f"array {index}"
            wav = wav.mean(axis=-1) if wav.ndim == 2 else wav
        wavs.check_question(wav, rate, name)
        return wav, rate

    def hear(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[np.ndarray]:
        """Woven audio ids of waveforms, as they stand in a prompt."""
        system = self.system
        codes = system.tokenizer.encode(list(waveforms), sample_rate)
        return [interleave.weave_audio(c.linguistic, c.semantic, system.vocab) for c in codes]

    def respond(
        self, task: str, contents: Sequence[np.ndarray | str], *, seed: int = 0, sampling: SamplingConfig | None = None
    ) -> list[Response]:
        """Run any task of ``tokens.prompt.TASK_IDS`` on audio ids or text, batched."""
        system = self.system
        prompts = [
            prompt.task_prompt(task, content, system.text, system=system.config.system_prompt) for content in contents
        ]
        key = jax.random.fold_in(jax.random.key(seed), 0)
        outputs = generate(system.decoder, prompts, sampling or system.config.sampling, stop_ids=(EOT,), key=key)
        return [self._parse(task, np.asarray(output.ids), output.stopped) for output in outputs]

    def _parse(self, task: str, ids: np.ndarray, stopped: bool) -> Response:
        system = self.system
        transcript, body = interleave.split_transcript(ids) if task == "transcript_first" else (ids[:0], ids)
        unwoven = interleave.unweave_answer(body, system.vocab)
        woven = interleave.weave_audio(unwoven.linguistic, unwoven.semantic, system.vocab)
        return Response(
            text=system.text.decode_span(unwoven.text),
            heard=system.text.decode_span(transcript),
            audio_tokens=np.asarray(system.vocab.vocoder_codes(woven)),
            tokens=ids,
            stopped=stopped,
        )

    def speak(self, audio_tokens: Sequence[np.ndarray], *, seed: int = 0) -> list[np.ndarray]:
        """Waveforms float32 at the vocoder's rate of woven audio tokens 0 ... 5,119."""
        key = jax.random.fold_in(jax.random.key(seed), 1)
        return [np.asarray(w, np.float32) for w in self.system.vocoder.synthesize(list(audio_tokens), key=key)]

    def _answer(
        self, questions: list[tuple[np.ndarray, int]], seed: int, task: str, sampling: SamplingConfig, speak: bool
    ) -> list[Answer]:
        rate, timings = self.system.config.tokenizer.linguistic.sample_rate, {}
        clock = time.perf_counter()
        audio = self.hear([wavs.resample(w, r, rate) for w, r in questions], rate)
        timings["hear"] = time.perf_counter() - clock

        clock = time.perf_counter()
        responses = self.respond(task, audio, seed=seed, sampling=sampling)
        timings["think"] = time.perf_counter() - clock

        clock = time.perf_counter()
        silence = [np.zeros(0, np.float32)] * len(responses)
        speech = self.speak([r.audio_tokens for r in responses], seed=seed) if speak else silence
        timings["speak"] = time.perf_counter() - clock
        return [
            Answer(
                text=response.text,
                wav=wav,
                sample_rate=self.system.config.vocoder.hift.sample_rate,
                heard=response.heard,
                stopped=response.stopped,
                question_seconds=len(question) / question_rate,
                tokens=response.tokens,
                audio_tokens=response.audio_tokens,
                timings=timings,
            )
            for response, wav, (question, question_rate) in zip(responses, speech, questions, strict=True)
        ]
