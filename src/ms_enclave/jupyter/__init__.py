"""Kernels of sandboxes for Jupyter's clients: a kernel spec, and a bridge that speaks its protocol.

Needs the extra `notebook`. Nothing else of ours imports this.
"""
