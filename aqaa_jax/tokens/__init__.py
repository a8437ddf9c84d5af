"""Token ids, weaving, prompts and the text tokenizer (NumPy only)."""
