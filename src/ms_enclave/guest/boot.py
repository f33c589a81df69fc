"""The first program of every interpreter inside: `python -I -S boot.py zygote|cold`.

It loads what a process of a sandbox may need, says that it is ready, and parks in a read of
descriptor 3. A copy of the parked zygote wakes up in a sandbox with a channel of its own there; a
cold interpreter is started with it. Standard library only, CPython 3.8 and later.
"""

import gc
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(_HERE))
sys.dont_write_bytecode = True

from guest import instance  # noqa: E402

sys.path.pop(0)


def main() -> None:
    if sys.argv[1] == "zygote":
        gc.collect()
        gc.freeze()
        os.write(3, b"R")
    instance.main(3)


if __name__ == "__main__":
    main()
