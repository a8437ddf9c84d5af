"""Ahead-of-time plans: the very training step compiled for a TPU topology that is not here, and what it will cost."""
