"""What turns the conversations of these tests into ids."""

import pytest
from conversations import ANSWERS, CONFIG, QUESTIONS

from aqaa_jax.config import WeaveConfig
from aqaa_jax.data.examples import Coder
from aqaa_jax.tokens.text import train_pocket
from aqaa_jax.tokens.vocab import Vocab


@pytest.fixture(scope="session")
def coder(tmp_path_factory):
    vocab = Vocab(CONFIG)
    path = tmp_path_factory.mktemp("text") / "t.model"
    text = train_pocket([*QUESTIONS * 20, *ANSWERS * 20, "human", "assistant", "system"], path, vocab, size=400)
    return Coder(text, vocab, WeaveConfig())
