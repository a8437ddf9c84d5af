"""What is measured, the sizes that both sides share, and the clock. Standard library only: two environments import it.

Every item is the same work on the same sizes with random weights; ``amount`` is seconds of audio or tokens.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

SECONDS = 10.0
LINGUISTIC_FRAMES = 167  # 60 ms
WHISPER_FRAMES = 1000  # 10 ms
MEL_FRAMES = 861  # of 256 samples at 22.05 kHz
FLOW_STEPS = 10
# About a billion parameters in Step1's layout and vocabulary; the peer is a Llama of the same sizes.
DECODER = {"vocab": 74752, "embed": 2048, "mlp": 5632, "heads": 32, "kv_heads": 4, "head_dim": 64, "layers": 16}
PROMPT, NEW_TOKENS = 16, 32
REPEATS = 3

# name -> (what, unit of the amount, amount, wanted ratio)
ITEMS = {
    "linguistic": ("SANM encoder, features to states", "s of audio", SECONDS, 3.0),
    "semantic": ("S3 encoder and codebook, mel to codes", "s of audio", SECONDS, 1.0),
    "flow": ("velocity estimator, 10 guided Euler steps", "s of audio", SECONDS, 1.0),
    "hift": ("HiFT with F0 predictor, mel to waveform", "s of audio", SECONDS, 1.5),
    "decode": ("1 B decoder, greedy, batch 1; ours with int8 weights", "tokens", NEW_TOKENS, 2.0),
    "decode_float32": ("the same, both sides float32", "tokens", NEW_TOKENS, 1.0),
}


def measure(run: Callable[[], object], repeats: int = REPEATS) -> dict[str, float]:
    """Median CPU seconds (all threads) and wall seconds of ``run`` after one call to warm up."""
    run()
    cpu, wall = [], []
    for _ in range(repeats):
        c, w = time.process_time(), time.perf_counter()
        run()
        cpu.append(time.process_time() - c)
        wall.append(time.perf_counter() - w)
    return {"cpu_seconds": statistics.median(cpu), "wall_seconds": statistics.median(wall)}


def main(runs: dict[str, Callable[[], Callable[[], object]]]) -> None:
    """``python side.py ITEM``: build the item, measure it, print one JSON line."""
    name = sys.argv[1]
    print(json.dumps(measure(runs[name]())))
