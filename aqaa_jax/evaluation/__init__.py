"""Judges, metrics and reports."""
