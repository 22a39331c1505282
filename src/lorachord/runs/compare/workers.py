"""Where trials run: processes of this machine, or a cluster of Ray. Both hand out futures of `concurrent.futures`."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from lorachord.runs.compare.trial import run_trial

Spec = Mapping[str, Any]
Result = dict[str, Any]
PARENT_DEATH = 1
"""Of Linux's prctl: the signal that a process gets when its parent ends."""


class Workers(ABC):
    """
    Attributes:
        size: how many trials run at once.
    """

    size: int

    @abstractmethod
    def submit(self, spec: Spec) -> Future[Result]:
        """Begin a trial, or let it wait for a free place."""

    @abstractmethod
    def stop(self) -> None:
        """Let the trials that are going on save what they have, and end."""

    @abstractmethod
    def close(self) -> None:
        """End, when nothing is going on."""

    @abstractmethod
    def died(self, error: BaseException) -> bool:
        """Whether a future failed because a process ended, and no trial is to blame; then it can be submitted again."""


class Processes(Workers):
    """Processes of this machine, each with a fixed number of threads.

    Args:
        size: how many.
        threads: of each.
    """

    def __init__(self, size: int, threads: int) -> None:
        self.size, self.threads = size, threads
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.size, get_context("spawn"), _begin, (self.threads, os.getpid()))

    def submit(self, spec: Spec) -> Future[Result]:
        with _ctrl_c_ignored():
            try:
                return self._pool.submit(run_trial, spec)
            except BrokenProcessPool:
                self._pool.shutdown()
                self._pool = self._new()
                return self._pool.submit(run_trial, spec)

    def stop(self) -> None:
        for child in active_children():
            child.terminate()
        self._pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        self._pool.shutdown()

    def died(self, error: BaseException) -> bool:
        return isinstance(error, BrokenProcessPool)


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Processes that are made meanwhile know nothing of Ctrl-C, unless they train; `stop` ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin(threads: int, parent: int) -> None:
    """Of a new process: it ends with the comparison, also with one that is killed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL)
        if os.getppid() != parent:
            # It ended before it could be told.
            os._exit(1)
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.disable_progress_bar()


class RayCluster(Workers):
    """Workers of a Ray cluster (`pip install 'lorachord[ray]'`); a trial whose node is lost runs again elsewhere.

    Args:
        address: of the cluster's head, as `ray start` prints it; "local" for one of this process.
        size: trials at once.
        threads: of each, which is as many CPUs as it takes.

    Raises:
        ValueError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str, size: int, threads: int) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise ValueError("--ray needs Ray: pip install 'lorachord[ray]'.") from None
        self.size, self._ray = size, ray
        how: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "warning"}
        try:
            if address == "local":
                ray.init(num_cpus=size * threads, **how)
            else:
                # Ray itself tries for minutes.
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
                del how["include_dashboard"]
                ray.init(address, **how)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"There is no Ray cluster at {address} ({error}). Start its head with `ray start --head --port=6379 "
                "--include-dashboard=false`, and give --ray HOST:6379."
            ) from None
        # A trial goes on from its own checkpoint, wherever it runs.
        self._run = ray.remote(num_cpus=threads, max_retries=2)(run_trial)

    def submit(self, spec: Spec) -> Future[Result]:
        future: Future[Result] = self._run.remote(dict(spec)).future()
        return future

    def stop(self) -> None:
        self._ray.shutdown()

    def close(self) -> None:
        self._ray.shutdown()

    def died(self, error: BaseException) -> bool:
        return isinstance(error, (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError))

    def check_folder(self, folder: str, token: str) -> None:
        """Whether every node sees a folder, by a file that this process has put there.

        Raises:
            ValueError: a node does not see it; its address is named.
        """
        ray = self._ray

        @ray.remote(num_cpus=0)  # type: ignore[untyped-decorator, unused-ignore]
        def sees() -> bool:
            return Path(folder, token).is_file()

        for node in ray.nodes():
            if not node["Alive"]:
                continue
            where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            if not ray.get(sees.options(scheduling_strategy=where).remote()):
                raise ValueError(
                    f"The worker {node['NodeManagerAddress']} does not see {folder}: name a folder that all share by "
                    "--out."
                )
