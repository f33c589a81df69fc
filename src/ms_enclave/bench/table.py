"""What is measured and what is promised of it: one entry each. A new promise is a new entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ms_enclave.bench import containers, forks, kernels, measures, rivals, served, streams
from ms_enclave.bench.figures import Figure, Promise
from ms_enclave.bench.programs import BARE, BWRAP, DOCKER, PYTHON, SANDLOCK, SERVER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ms_enclave.bench.context import Context, Round

__all__ = ["ROWS", "Row"]

_RIVALS = (rivals.LLM_SANDBOX, rivals.OLDER)
_OTHERS = (BARE, SERVER, BWRAP, SANDLOCK, DOCKER)


@dataclass(frozen=True)
class Row:
    """Something that is measured together: its figures, its baselines, and how."""

    name: str
    """What `--only` calls it."""
    figures: tuple[Figure, ...]
    measure: Callable[[Context, Round], Awaitable[None]]
    baselines: tuple[str, ...] = ()
    """Those that the first figure stands beside without a promise."""
    needs: tuple[str, ...] = ()
    """Modules without which it is left out."""
    once: bool = False
    """Whether one round is enough, because each is long."""
    sandbox_type: str = "process"
    """The type of sandbox that it measures: any other one takes an engine of containers."""
    image: str | None = None
    """An image without which it is left out."""


ROWS = (
    Row(
        "cold",
        (Figure("ms-enclave run -c", promises=(Promise(300),)),),
        measures.cold,
        (PYTHON, BARE, BWRAP, SANDLOCK, DOCKER),
    ),
    Row(
        "fresh",
        (
            Figure(
                "print(1) in a fresh sandbox",
                promises=(Promise(3), Promise(1 / 3, PYTHON), Promise(1 / 60, DOCKER)),
            ),
        ),
        measures.fresh,
        _OTHERS,
    ),
    Row(
        "rate",
        (Figure("stateless runs", "/s", True, (Promise(3.5, PYTHON, at_least=True),)),),
        measures.rate,
        (BARE, SERVER, BWRAP, SANDLOCK),
    ),
    Row(
        "numpy",
        (
            Figure(
                "stateless runs with numpy",
                "/s",
                True,
                (Promise(20, "python -c, import numpy", at_least=True),),
            ),
        ),
        measures.numpy,
        (SERVER,),
        needs=("numpy",),
    ),
    Row(
        "cpu",
        (Figure("processor time of a run", promises=(Promise(1.5, measures.FLOOR),)),),
        measures.processor_time,
    ),
    Row("running", (Figure("print(1) in a running sandbox"),), measures.running, (PYTHON,)),
    Row(
        "shell",
        (Figure("true in a running sandbox", promises=(Promise(4),)),),
        measures.shell,
        ("sh -c true",),
    ),
    Row(
        "timeout",
        (
            Figure(measures.TIMEOUT, promises=(Promise(25), Promise(250, quantile=0.99))),
            Figure(measures.SURVIVORS, "", promises=(Promise(0, quantile=1),)),
            Figure(measures.STARTED, "a tree"),
        ),
        measures.timeouts,
    ),
    Row(
        "crowd",
        (
            Figure("idle sandbox", "MiB", promises=(Promise(1.5),)),
            Figure(measures.ONE_MORE, promises=(Promise(1.4, measures.ONE_MORE_BASE),)),
        ),
        measures.crowd,
        ("idle python",),
        once=True,
    ),
    Row(
        "turnover",
        (Figure(measures.LAST, promises=(Promise(1.2, measures.FIRST),)),),
        measures.turnover,
        once=True,
    ),
    Row(
        "cell",
        (
            Figure(kernels.CELL_PLAIN, promises=(Promise(1),)),
            Figure(kernels.CELL, promises=(Promise(1.5),)),
        ),
        kernels.cells,
        (kernels.IPYKERNEL_CELL,),
    ),
    Row(
        "kernel",
        (Figure(kernels.FRESH_PLAIN, promises=(Promise(5),)), Figure(kernels.FRESH)),
        kernels.fresh,
        (kernels.IPYKERNEL_START,),
        needs=("numpy", "pandas", "IPython"),
    ),
    Row(
        "kernels",
        (
            Figure(kernels.IDLE, "MiB", promises=(Promise(2),)),
            Figure(kernels.IDLE_USED, "MiB"),
            Figure(kernels.IDLE_IPYTHON, "MiB"),
            Figure(kernels.ONE_MORE, promises=(Promise(1.4, kernels.ONE_MORE_BASE),)),
        ),
        kernels.crowd,
        needs=("numpy",),
        once=True,
    ),
    Row(
        "forks",
        (
            Figure(forks.FORK),
            Figure(forks.CHECKPOINT),
            Figure(forks.ROLLBACK),
            Figure(forks.ATOMIC),
        ),
        forks.forks,
        (forks.PLAIN,),
        needs=("numpy", "pandas"),
    ),
    Row(
        "streams",
        (
            Figure(streams.READ_STREAM, "MiB/s", True, (Promise(300, at_least=True),)),
            Figure(streams.CONNECT, "MiB/s", True, (Promise(300, at_least=True),)),
            Figure(streams.MEMORY, "MiB", promises=(Promise(16),)),
            Figure(streams.GUEST_MEMORY, "MiB", promises=(Promise(8),)),
        ),
        streams.streams,
        (streams.LOOPBACK,),
    ),
    Row(
        "served",
        (
            Figure(served.ADDED, promises=(Promise(2), Promise(5, quantile=0.99))),
            Figure(served.EXISTS, "/s", True, (Promise(500, at_least=True),)),
            Figure(served.CELLS, "/s", True, (Promise(500, at_least=True),)),
            Figure(served.PYTHON, "/s", True, (Promise(0.85, served.LOCAL, at_least=True),)),
        ),
        served.served,
        needs=("fastapi", "uvicorn"),
    ),
    Row(
        "listed",
        (Figure(served.LISTED, promises=(Promise(50),)),),
        served.listed,
        needs=("fastapi", "uvicorn"),
        once=True,
    ),
    Row(
        "docker",
        (Figure(containers.START, promises=(Promise(1.1, containers.ENGINES_RUN),)),),
        containers.starts,
        _RIVALS,
        sandbox_type="docker",
    ),
    Row(
        "docker-true",
        (Figure(containers.TRUE, promises=(Promise(5),)),),
        containers.true,
        (containers.ENGINES_EXEC, *_RIVALS),
        sandbox_type="docker",
    ),
    Row(
        "docker-stop",
        (Figure(containers.STOP, promises=(Promise(1.2, containers.ENGINES_RM),)),),
        containers.stops,
        _RIVALS,
        sandbox_type="docker",
    ),
    Row(
        "docker-crowd",
        (Figure(containers.CROWD, promises=(Promise(1.0, containers.ENGINES_CROWD),)),),
        containers.crowd,
        _RIVALS,
        sandbox_type="docker",
    ),
    Row(
        "docker-notebook",
        (
            Figure(containers.NOTEBOOK, promises=(Promise(1.2, containers.GATEWAY),)),
            Figure(containers.FROM_POOL, promises=(Promise(100),)),
        ),
        containers.notebooks,
        _RIVALS,
        sandbox_type="docker_notebook",
        image=containers.NOTEBOOK_IMAGE,
    ),
    Row(
        "import",
        (
            Figure(measures.IMPORT, promises=(Promise(20),)),
            Figure(measures.IMPORT_MODEL, promises=(Promise(300),)),
        ),
        measures.imports,
        (PYTHON,),
    ),
)
