"""A Python that remembers: cells, what they show, a cell that hangs, one that kills its kernel."""

from ms_enclave.blocking import LocalSandboxManager

TABLE = """
class Table:
    def __init__(self, rows): self.rows = rows
    def __repr__(self): return f"{len(self.rows)} rows"
    def _repr_html_(self): return "".join(f"<tr><td>{row}</td></tr>" for row in self.rows)
"""


def main() -> None:
    """Run a few cells."""
    with LocalSandboxManager() as manager, manager.sandbox("process") as sandbox:
        kernel = sandbox.kernel()

        # What a cell defines is there in the next one; its last expression is its result.
        kernel.run("squares = [n * n for n in range(5)]")
        print(kernel.run("sum(squares)").result["text/plain"])

        # Objects are shown in every way they know, as in a notebook.
        kernel.run(TABLE)
        shown = kernel.run("Table(squares)").result
        print(shown["text/plain"], "as", sorted(shown))

        # As it comes: Jupyter's messages, one by one.
        for event in kernel.run_stream("for n in range(2): print(n)"):
            if event.type == "stream":
                print(event.content["text"], end="")

        # input() is answered by a function of yours.
        print(kernel.run("input('name? ')", on_input=lambda prompt: "Ann").result["text/plain"])

        # A cell that takes too long is interrupted, and the variables stay.
        print(kernel.run("while True: pass", timeout=0.3).verdict.value)
        print(kernel.run("len(squares)").result["text/plain"])

        # A kernel that dies says why, and starts anew when it is told to.
        kernel.run("import os; os.kill(os.getpid(), 9)")
        print(kernel.status, kernel.death.value)
        kernel.restart()
        print(kernel.run("'squares' in globals()").result["text/plain"])


if __name__ == "__main__":
    main()
