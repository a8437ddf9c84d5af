"""Saving and loading parameter trees."""
