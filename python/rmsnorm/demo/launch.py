"""Starts the processes of a job by torchrun's launcher, and says which one ended the run."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rmsnorm.demo import processes
from rmsnorm.demo.processes import Job, Ran

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Lost(Exception):
    """A process ended before its job was done, and so the launcher ended the others.

    Attributes:
        rank: of that process.
        how: it ended.
        said: what the other processes printed: why they can't go on.
        alive: processes that are left.
        seconds: since a process was killed; 0 if none was.
    """

    def __init__(self, job: Job, rank: int, failure: ProcessFailure, said: list[str]) -> None:
        self.rank, self.said = rank, said
        if failure.exitcode < 0:
            self.how, why = f"was ended by {failure.signal_name()}", ""
        else:
            told = failure.error_file_data["message"]
            self.how, why = "failed", told["message"] if isinstance(told, dict) else failure.message
        super().__init__(processes.ending(job, rank, self.how, why))
        self.alive = len(multiprocessing.active_children())
        killed = processes.killed_file(job.folder) if job.folder else None
        self.seconds = time.time() - killed.stat().st_mtime if killed and killed.exists() else 0.0


def launch(job: Job, logs: Path) -> Ran:
    """Run a job, of as many processes as it takes, of one thread each.

    Args:
        logs: a new folder for what the processes print.

    Raises:
        Lost: a process ended early.
    """
    # Forked from a server that has imported all, for that takes each process seconds.
    multiprocessing.set_forkserver_preload(
        [processes.__name__, "transformers.models.llama.modeling_llama"]
    )
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # Lost says it in one line
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job.processes,
        run_id="demo",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        ran: Ran = elastic_launch(config, processes.work)(job)[0]
        return ran
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        printed = [path.read_text() for path in sorted(logs.glob("*/*/*/stdout.log"))]
        said = [line for text in printed for line in text.splitlines() if line.startswith("rank")]
        raise Lost(job, rank, failure, said) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    finally:  # the launcher leaves its own
        for number, handler in handlers.items():
            signal.signal(number, handler)
