"""Measures what the documentation promises, always as a ratio against what a user would do instead.

`table` says what is measured and promised, one entry each; everything else here serves it.
"""
