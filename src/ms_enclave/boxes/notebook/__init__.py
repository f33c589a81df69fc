"""What a notebook's container is given: how its image is made, and two files of Python for it.

None of it runs on the host.
"""
