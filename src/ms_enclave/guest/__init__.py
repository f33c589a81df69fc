"""What runs inside a sandbox. Standard library only, CPython 3.8 and later.

Inside it is a package of its own, called `guest`: its modules import each other relatively and
nothing else of ours. Nothing here is trusted by the host.
"""
