"""A voice to answer in: what decoder and vocoder are given of a recorded prompt.

As the published system clones a voice (``tts.py``, ``cosyvoice/cli/frontend.py``): the vocoder gets the prompt's tokens
(of the recording at full level without its silent edges), its mel and its speaker vector (both of the recording as it
is), and continues; the decoder gets the prompt as a past exchange, if its text is known. Differences: a prompt has at
most ``MAX_SECONDS``; without a speaker network the speaker vector is zero, which the published program refuses.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from aqaa_jax.checkpoint.folder import SPEAKER_MODEL
from aqaa_jax.codec import speaker
from aqaa_jax.config import SystemConfig
from aqaa_jax.dsp.mel import vocoder_mel
from aqaa_jax.dsp.wav import resample
from aqaa_jax.inference.system import System
from aqaa_jax.tokens.prompt import Turn, voice_turns

MAX_SECONDS = 30.0  # one piece of the semantic tokenizer; every answer carries the whole prompt through the flow


class Voice(NamedTuple):
    """A prompt, ready for any number of answers of the model that made it."""

    ids: Int[np.ndarray, "L"]  # woven audio ids, as they stand in a prompt of the decoder
    tokens: Int[np.ndarray, "L"]  # the same, as the vocoder counts them: 0 ... 5,119
    mel: Float[np.ndarray, "T M"]
    speaker: Float[np.ndarray, "D"]  # zero if the model has no speaker network
    text: str = ""  # what is said in the prompt; empty: not known

    @property
    def history(self) -> tuple[Turn, ...]:
        """The exchange that stands before a question: none unless the text is known."""
        return voice_turns(self.text, self.ids) if self.text else ()


def check_follows(config: SystemConfig) -> None:
    """Raise ``ValueError`` for a model whose vocoder never saw a voice prompt in training: it would speak noise."""
    if config.vocoder.flow.prompt_probability == 0.0:
        raise ValueError(
            f"the model {config.name!r} cannot follow a voice prompt: its vocoder was trained without any "
            "(flow.prompt_probability is 0) and has one voice"
        )


def make_voice(system: System, ids: Int[np.ndarray, "L"], wav_W: Float[np.ndarray, "W"], rate: int, text: str) -> Voice:
    """The voice of a checked recording whose woven ids are ``ids``. A zero speaker vector is logged as a warning."""
    flow = system.config.vocoder.flow
    vector_D = np.zeros(flow.speaker_dim, np.float32)
    if system.speaker_model is None:
        logging.getLogger(__name__).warning(
            "the model folder has no %s: the speaker vector is zero, the voice is that of the prompt's tokens and mel",
            SPEAKER_MODEL,
        )
    else:
        heard_W = resample(wav_W, rate, speaker.SAMPLE_RATE)
        vector_D = speaker.speaker_vector(system.speaker_model, heard_W, flow.speaker_dim)
    return Voice(
        ids=ids,
        tokens=np.asarray(system.vocab.vocoder_codes(ids)),
        mel=vocoder_mel(resample(wav_W, rate, flow.mel.sample_rate), flow.mel),
        speaker=vector_D,
        text=text,
    )
