"""A notebook in a container: Jupyter's own kernels, and the image built on first use.

It needs a Docker engine, and wheels for the image where there is no network to fetch them from:
`python examples/notebook.py FOLDER`.
"""

import logging
import sys

from ms_enclave.blocking import LocalSandboxManager


def main() -> None:
    """Run a few cells in two kernels of one container."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # the build tells how far it is
    config = {"memory_limit": "1g", "wheels": sys.argv[1] if len(sys.argv) > 1 else None}
    with LocalSandboxManager() as manager, manager.sandbox("docker_notebook", config) as sandbox:
        first, second = sandbox.kernel("first"), sandbox.kernel("second")

        # Each kernel has its own variables.
        first.run("%time total = sum(range(10**6))")
        print(first.run("total").result["text/plain"])
        print(second.run("'total' in globals()").result["text/plain"])

        # What Jupyter shows is there as it shows it.
        shown = first.run("from IPython.display import HTML; HTML('<b>bold</b>')").result
        print(sorted(shown), shown["text/html"])

        # The same container has commands and files, too.
        sandbox.files.write("data.csv", "a,b\n1,2\n")
        print(second.run("open('data.csv').read().splitlines()[0]").result["text/plain"])


if __name__ == "__main__":
    main()
