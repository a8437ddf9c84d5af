"""Tokens to logits: the Step1 language model."""
