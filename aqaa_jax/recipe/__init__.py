"""The stages of training, sampling, judging and merging, strung together: from nothing to a shipped model."""
