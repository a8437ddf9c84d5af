"""Sampling, generation and the wav to wav answer."""
