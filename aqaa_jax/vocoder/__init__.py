"""Audio tokens to mel to waveform."""
