"""The version string, read by ``setup.py`` and by checkpoints' provenance."""

__version__ = "0.1.0"
