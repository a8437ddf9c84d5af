"""aqaa_jax: a JAX speech-to-speech language model system, a re-implementation of Step-Audio-AQAA.

Importing the package touches no device and loads no model::

    from aqaa_jax import Aqaa
    answer = Aqaa.load().ask("question.wav")
    answer.save("answer.wav")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import nnx

from aqaa_jax.version import __version__

if TYPE_CHECKING:
    from aqaa_jax.inference.answer import Answer, Aqaa

__all__ = ["Answer", "Aqaa", "__version__"]

# Modules are plain pytrees here (tree mode): no shared references, no graph updates.
nnx.set_graph_mode(False)


def __getattr__(name: str) -> Any:
    if name in ("Aqaa", "Answer"):
        from aqaa_jax.inference import answer

        return getattr(answer, name)
    raise AttributeError(f"module 'aqaa_jax' has no attribute {name!r}")
