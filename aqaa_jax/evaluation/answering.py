"""The first step: a model's answers to the cases of a run, as text and as wav files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from aqaa_jax.data.corpus import TAIL_SECONDS
from aqaa_jax.dsp import wav as wavs
from aqaa_jax.evaluation.cases import CODEC_TASKS, Case, Turn
from aqaa_jax.evaluation.run import Run
from aqaa_jax.inference.answer import Aqaa, Response
from aqaa_jax.tokens import prompt
from aqaa_jax.tokens.interleave import GROUP, GROUP_LINGUISTIC, unweave_answer

Say = Callable[[str], None]
Line = dict[str, Any]


class Answering:
    """A model answering cases, alike ones in batches; ``seed`` decides what is sampled and shuffled."""

    def __init__(self, model: Aqaa, *, seed: int = 0):
        self.model, self.seed = model, seed
        self.rate = model.system.config.tokenizer.linguistic.sample_rate

    def answer(self, run: Run, say: Say, *, batch: int = 25) -> None:
        """Fill ``answers.jsonl`` and ``answers/``; a case that cannot be answered is a failure that says why."""
        by_kind: dict[tuple[str, bool, bool], list[Case]] = {}
        for case in run.cases.cases:
            alone = len(case.turns) > 1
            by_kind.setdefault((case.task, case.speak, alone), []).append(case)
        journal, cases = run.answers, {case.id: case for case in run.cases.cases}

        def some(ids: list[str]) -> Iterator[Line]:
            yield from self._safely(run, [cases[i] for i in ids])
            say(f"[answers] {len(journal.lines)}/{len(cases)}")

        for (_, _, alone), members in by_kind.items():
            journal.fill([case.id for case in members], some, 1 if alone else batch)

    def _safely(self, run: Run, cases: Sequence[Case]) -> Iterator[Line]:
        """The lines of ``cases``; a batch that fails is gone through one by one, to find out whose fault it is."""
        try:
            lines = self._lines(run, cases)
        except (ValueError, OSError) as error:
            if len(cases) == 1:
                yield {"id": cases[0].id, "failure": " ".join(str(error).split())}
                return
            for case in cases:
                yield from self._safely(run, [case])
            return
        yield from lines

    def _lines(self, run: Run, cases: Sequence[Case]) -> list[Line]:
        if cases[0].task in CODEC_TASKS:
            return self._codec(run, cases)
        if len(cases[0].turns) > 1:
            return [self._conversation(run, case) for case in cases]
        contents = self._contents([case.turns[-1] for case in cases])
        responses = self.model.respond(cases[0].task, contents, seed=self.seed)
        return self._spoken(run, cases, responses)

    def _conversation(self, run: Run, case: Case) -> Line:
        """Turn by turn; the model's own answers stay in the context as the ids it generated."""
        history: list[prompt.Turn] = []
        own: list[str] = []
        for turn, following in zip(case.turns, [*case.turns[1:], None], strict=True):
            (content,) = self._contents([turn])
            if turn.role == "user" and (following is None or following.role == "user"):
                (response,) = self.model.respond(case.task, [content], seed=self.seed, history=history)
                if following is None:
                    return {**self._spoken(run, [case], [response])[0], **({"own_turns": own} if own else {})}
                own.append(response.text)
                history += [prompt.Turn("human", content), prompt.Turn("assistant", response.tokens)]
            else:
                history.append(prompt.Turn(turn.role, content))
        raise ValueError(f"case {case.id!r} does not end with a user's turn")

    def _spoken(self, run: Run, cases: Sequence[Case], responses: Sequence[Response]) -> list[Line]:
        speaks = [case.spoken and len(r.audio_tokens) > 0 for case, r in zip(cases, responses, strict=True)]
        said = iter(self._speak([r.audio_tokens for r, s in zip(responses, speaks, strict=True) if s]))
        lines = []
        for case, response, s in zip(cases, responses, speaks, strict=True):
            problems = unweave_answer(response.tokens, self.model.system.vocab).problems
            line: Line = {
                "id": case.id,
                "text": response.text,
                "stopped": response.stopped,
                "tokens": len(response.tokens),
                "repaired": any(problems[:-1]),  # the last one tells what ``stopped`` tells
            }
            if response.heard:
                line["heard"] = response.heard
            lines.append(line | (self._written(run, case, next(said)) if s else {}))
        return lines

    def _codec(self, run: Run, cases: Sequence[Case]) -> list[Line]:
        tail = np.zeros(round(TAIL_SECONDS * self.rate), np.float32)
        heard = self.model.hear([np.concatenate([self._read(c.turns[-1]), tail]) for c in cases], self.rate)
        tokens = [np.asarray(self.model.system.vocab.vocoder_codes(ids)) for ids in heard]
        said = self._speak([self._shuffled(c, t) for c, t in zip(cases, tokens, strict=True)])
        return [{"id": c.id, "text": "", **self._written(run, c, w)} for c, w in zip(cases, said, strict=True)]

    def _shuffled(self, case: Case, tokens: np.ndarray) -> np.ndarray:
        """Controls: each stream permuted token by token, or the 120 ms groups permuted whole."""
        rng = np.random.default_rng([self.seed, *case.id.encode()])
        groups = tokens.reshape(-1, GROUP)
        if case.task == "shuffled_groups":
            return rng.permutation(groups).ravel()
        if case.task == "shuffled_tokens":
            streams = np.split(groups, [GROUP_LINGUISTIC], axis=1)
            return np.concatenate([rng.permutation(s.ravel()).reshape(s.shape) for s in streams], axis=1).ravel()
        return tokens

    def _contents(self, turns: Sequence[Turn]) -> list[Any]:
        """Audio ids of a turn with a recording, else its text."""
        spoken = [i for i, turn in enumerate(turns) if turn.audio]
        contents: list[Any] = [turn.text for turn in turns]
        if spoken:
            for i, ids in zip(spoken, self.model.hear([self._read(turns[i]) for i in spoken], self.rate), strict=True):
                contents[i] = ids
        return contents

    def _read(self, turn: Turn) -> np.ndarray:
        wav, rate = wavs.read(turn.audio)
        wavs.check_question(wav, rate, turn.audio)
        return wavs.resample(wav, rate, self.rate)

    def _speak(self, tokens: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self.model.speak(tokens, seed=self.seed) if len(tokens) else []

    def _written(self, run: Run, case: Case, wav: np.ndarray) -> Line:
        rate = self.model.system.config.vocoder.hift.sample_rate
        wavs.write(run.wav(case.id), wav, rate)
        return {"wav": run.wav(case.id).relative_to(run.folder).as_posix(), "seconds": round(len(wav) / rate, 3)}
