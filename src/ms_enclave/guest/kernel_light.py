"""Imported before `kernel` where that is to do without IPython."""
