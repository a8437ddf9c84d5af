"""The legend of axis letters: one letter, one meaning, in the whole project.

Local arrays carry their axes as a suffix (``q_BLNH``); public signatures carry them as jaxtyping
annotations (``Float[Array, "B L N H"]``); einsum equations use the same letters. Everything is
channel-last; the only transposes of weights are in ``convert/``.

======  ==========================================  ======  ===========================================
letter  axis                                        letter  axis
======  ==========================================  ======  ===========================================
B       batch                                       W       waveform samples
L       query / token positions                     T       audio frames
S       key positions                               M       mel bins (or stacked filter-bank features)
D       model width                                 C       channels of a convolution
N       query heads                                 Q       codebook entries
K       key/value heads                             P       chunks of a chunked encoder
G       query heads per key/value head              E       experts
H       head size                                   F       feed-forward width
V       vocabulary
======  ==========================================  ======  ===========================================

Suffixes name logical axes and stay the same under any sharding. Lower-case ``t`` is flow time,
never an axis.
"""

from typing import Any

BatchArray = Any  # of a batch: numpy where a stage makes it, a jax.Array inside the step
