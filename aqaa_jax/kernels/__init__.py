"""Attention with the sqrt-ALiBi bias computed where it is used: blocked XLA, Pallas for TPU, and over a cache."""
