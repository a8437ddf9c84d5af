"""Layers shared by codec, decoder and vocoder."""
