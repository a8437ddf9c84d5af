"""A spoken question in, a spoken answer out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack, overload

import jax
import numpy as np

from aqaa_jax.config import SamplingConfig
from aqaa_jax.dsp import wav as wavs
from aqaa_jax.inference import voice as voices
from aqaa_jax.inference.generate import generate
from aqaa_jax.inference.pattern import pattern
from aqaa_jax.inference.system import System, for_answering, load_system
from aqaa_jax.inference.voice import Voice
from aqaa_jax.tokens import interleave, prompt
from aqaa_jax.tokens.vocab import EOT

Recording = str | Path | np.ndarray


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


class AskOptions(TypedDict, total=False):
    """What ``Aqaa.ask`` takes beside a question."""

    sample_rate: int | None
    seed: int
    transcript_first: bool
    sampling: SamplingConfig | None
    speak: bool
    voice: Recording | Voice | None
    voice_text: str


class Aqaa:
    """A loaded system. ``Aqaa.load()`` gives the shipped pocket model, ``Aqaa.load(folder)`` any other."""

    def __init__(self, system: System):
        self.system = system

    @classmethod
    def load(cls, model: str | Path | None = None, *, int8: bool = False) -> Aqaa:
        """Load a model folder; raises ``FileNotFoundError`` or ``ValueError`` naming file and tensor.

        ``int8`` rounds the decoder's matrices to int8, a quarter of float32.
        """
        return cls(for_answering(load_system(model), int8=int8))

    @overload
    def ask(self, question: Recording, **options: Unpack[AskOptions]) -> Answer: ...
    @overload
    def ask(self, question: Sequence[Recording], **options: Unpack[AskOptions]) -> list[Answer]: ...
    def ask(
        self,
        question: Recording | Sequence[Recording],
        *,
        sample_rate: int | None = None,
        seed: int = 0,
        transcript_first: bool = False,
        sampling: SamplingConfig | None = None,
        speak: bool = True,
        voice: Recording | Voice | None = None,
        voice_text: str = "",
    ) -> Answer | list[Answer]:
        """Answer a wav file, a float array (with ``sample_rate``), or a list of either (batched).

        ``transcript_first`` lets the model write down the question before it answers (not how AQAA answers; an
        option). ``speak=False`` leaves out the vocoder. The same ``seed`` gives the same answer. ``voice`` (a wav file,
        an array at ``sample_rate``, or what ``voice()`` gave) is the voice to answer in, ``voice_text`` what it says.
        Raises ``ValueError`` or ``FileNotFoundError`` naming the input and what is wrong with it.
        """
        many = isinstance(question, (list, tuple))
        questions: list[Recording] = list(question) if isinstance(question, (list, tuple)) else [question]  # pyright: ignore[reportAssignmentType]
        sampling = self.system.config.sampling if sampling is None else sampling
        loaded = [self._read(q, sample_rate, f"array {i}") for i, q in enumerate(questions)]
        if voice is not None and not isinstance(voice, Voice):
            voice = self.voice(voice, sample_rate=sample_rate, text=voice_text)
        elif voice_text:
            raise ValueError(f"the voice text {voice_text!r} has no recording; expected one beside it as voice")
        task = "transcript_first" if transcript_first else "aqtaa"
        answers = self._answer(loaded, seed, task, sampling, speak, voice)
        return answers if many else answers[0]

    def voice(self, recording: Recording, *, sample_rate: int | None = None, text: str = "") -> Voice:
        """The voice of a wav file or a float array (with ``sample_rate``) of at most 30 s, for any number of answers.

        The vocoder goes on in this voice. With ``text``, what is said in the recording, the decoder hears it too: as an
        exchange before the question. Where the model folder holds ``campplus.onnx`` the speaker vector comes from it
        (needs the extra ``[voice]``), otherwise it is zero, with a warning. Raises ``ValueError`` for a model trained
        without voice prompts (as the shipped one), or naming the recording and what is wrong with it.
        """
        voices.check_follows(self.system.config)
        wav, rate = self._read(recording, sample_rate, "voice array", voices.MAX_SECONDS)
        (ids,) = self.hear([wav], rate, trim=True)
        return voices.make_voice(self.system, ids, wav, rate, text.strip())

    def _read(
        self, recording: Recording, sample_rate: int | None, name: str, max_seconds: float = wavs.MAX_SECONDS
    ) -> tuple[np.ndarray, int]:
        if isinstance(recording, (str, Path)):
            wav, rate = wavs.read(recording)
            name = str(recording)
        else:
            if sample_rate is None:
                raise ValueError("an array needs its sample_rate")
            wav, rate = np.asarray(recording, np.float32), int(sample_rate)
            wav = wav.mean(axis=-1) if wav.ndim == 2 else wav
        wavs.check_question(wav, rate, name, max_seconds=max_seconds)
        return wav, rate

    def hear(self, waveforms: Sequence[np.ndarray], sample_rate: int, *, trim: bool | None = None) -> list[np.ndarray]:
        """Woven audio ids of waveforms, as they stand in a prompt; ``trim`` as in ``DualTokenizer.prepare``."""
        system = self.system
        codes = system.tokenizer.encode(list(waveforms), sample_rate, trim=trim)
        return [interleave.weave_audio(c.linguistic, c.semantic, system.vocab) for c in codes]

    def respond(
        self,
        task: str,
        contents: Sequence[np.ndarray | str],
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        history: Sequence[prompt.Turn] = (),
    ) -> list[Response]:
        """Run any task of ``tokens.prompt.TASK_IDS`` on audio ids or text, batched, each after the same ``history``."""
        system = self.system
        first = system.config.system_prompt
        prompts = [prompt.task_prompt(task, c, system.text, system=first, history=history) for c in contents]
        key = jax.random.fold_in(jax.random.key(seed), 0)
        sampling = system.config.sampling if sampling is None else sampling
        held = sampling.hold_pattern and task in ("aqtaa", "tqtaa")
        constraint = pattern(system.config.vocab, system.config.weave) if held else None
        outputs = generate(system.decoder, prompts, sampling, stop_ids=(EOT,), key=key, constraint=constraint)
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

    def speak(
        self, audio_tokens: Sequence[np.ndarray], *, seed: int = 0, voice: Voice | None = None
    ) -> list[np.ndarray]:
        """Waveforms float32 at the vocoder's rate of woven audio tokens 0 ... 5,119, in ``voice`` if there is one."""
        key = jax.random.fold_in(jax.random.key(seed), 1)
        given = (voice.tokens, voice.mel, voice.speaker) if voice else ()
        return [np.asarray(w, np.float32) for w in self.system.vocoder.synthesize(list(audio_tokens), *given, key=key)]

    def _answer(
        self,
        questions: list[tuple[np.ndarray, int]],
        seed: int,
        task: str,
        sampling: SamplingConfig,
        speak: bool,
        voice: Voice | None,
    ) -> list[Answer]:
        rate, timings = self.system.config.tokenizer.linguistic.sample_rate, {}
        clock = time.perf_counter()
        audio = self.hear([wavs.resample(w, r, rate) for w, r in questions], rate)
        timings["hear"] = time.perf_counter() - clock

        clock = time.perf_counter()
        history = voice.history if voice else ()
        responses = self.respond(task, audio, seed=seed, sampling=sampling, history=history)
        timings["think"] = time.perf_counter() - clock

        clock = time.perf_counter()
        silence = [np.zeros(0, np.float32)] * len(responses)
        speech = self.speak([r.audio_tokens for r in responses], seed=seed, voice=voice) if speak else silence
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
