"""Measurements, always as a ratio in one run against what a user would do instead."""
