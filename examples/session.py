"""A session that nothing breaks: cells that leave nothing behind unless they succeed."""

from ms_enclave.blocking import LocalSandboxManager

CELLS = (
    "total = 0\nlog = open('log', 'w')",
    "total += 1; log.write('one '); log.flush()",
    "total += 10; log.write('bad '); log.flush()\nraise ValueError('no')",
    "total += 100; import os; os.remove('log'); os._exit(1)",
    "total += 1000; data = bytearray(1 << 30)",
    "total += 10000\nwhile True: pass",
    "total += 1; log.write('two '); log.flush()",
)


def main() -> None:
    """Run them, most of which end badly."""
    config = {"memory_limit": "256m"}
    with LocalSandboxManager() as manager, manager.sandbox("process", config) as sandbox:
        kernel = sandbox.kernel()
        for cell in CELLS:
            done = kernel.run(cell, atomic=True, timeout=1)
            print(f"{done.verdict.value:>12}: {cell.splitlines()[-1][:50]}")
        print("total:", kernel.run("total").result["text/plain"])
        print("log:", kernel.run("open('log').read()").result["text/plain"])

        # By hand: a checkpoint before something long, and back.
        before = sandbox.checkpoint("before")
        kernel.run("total = -1; import os; os.kill(os.getpid(), 9)")
        sandbox.rollback(before)
        print("total:", kernel.run("total").result["text/plain"])


if __name__ == "__main__":
    main()
