"""Signals to features: waveform, STFT, mel, filter bank."""
