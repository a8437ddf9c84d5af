"""Waveform to codes: the linguistic and the semantic tokenizer."""
