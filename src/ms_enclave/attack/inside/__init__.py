"""What runs inside: standard library only, CPython 3.8 and later.

`prelude` and one group of probes are sent as text and run as one program.
"""
