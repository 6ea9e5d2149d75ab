"""The processes of one job: how they find each other, agree, and notice that one of them is gone.

A process by itself needs nothing of this: every function then answers at once. JAX is imported by `connect`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ringmoe_jax.config import first_difference
from ringmoe_jax.errors import ConfigError, UserError

T = TypeVar("T")

PERIOD = 5.0  # seconds between two signs of life
PATIENCE = 30.0  # seconds without one, after which a process counts as gone
HEARTBEAT = 100  # seconds, of JAX itself, which does not say which process is missing: it comes second
TOGETHER = 300  # seconds for all processes to arrive at the start
LONG = 7 * 24 * 3600  # seconds to wait for processes that live: who is gone ends the others before

# Where a launcher says how many processes there are, and which one this is.
_NUMBERS = (
    ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
_job: _Job | None = None


def connect(*, stops: bool = False) -> None:
    """Connects this process to the others of its job; nothing to do where there are none. Before JAX is used.

    The environment says whether there are others: JAX_COORDINATOR_ADDRESS (host:port of process 0) with
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, or the numbers of Open MPI or SLURM; without an address what JAX knows of
    TPU slices, GKE, SLURM and Open MPI. From then on a process that is gone ends the others within a minute.

    Args:
        stops: whether SIGTERM is left to the training loop, which ends after the same step everywhere; else it ends
            this process at once.

    Raises:
        ConfigError: the environment is incomplete. Where the others do not come, the process ends with such a line.
    """
    global _job
    if _job or (known := _of_environment()) is None:
        return
    import jax

    jax.config.update("jax_enable_preemption_service", stops)
    address, count, which, devices = known
    board = _Board(address, count) if which == 0 else None
    late = threading.Timer(TOGETHER, _give_up_waiting, known[:3])  # before JAX does, which aborts
    late.start()
    jax.distributed.initialize(
        address,
        count,
        which,
        devices,
        cluster_detection_method="deactivate",
        initialization_timeout=2 * TOGETHER,
        heartbeat_timeout_seconds=HEARTBEAT,
        coordinator_bind_address="127.0.0.1:0",  # what JAX starts in process 0 is used by nobody, see `_Board`
    )
    late.cancel()
    from jax._src import distributed

    _job = _Job(distributed.global_state.client, which, count, board)
    jax.devices()  # all processes meet here as well, whatever each of them does next


def number() -> int:
    """Of this process, from 0: the process that writes files and prints."""
    return _job.number if _job else 0


def count() -> int:
    """Of processes that do the same."""
    return _job.count if _job and _job.together else 1


def exchange(value: Any) -> list[Any]:
    """The values that all processes gave, JSON types, by number; all of them must call it, in the same order."""
    return [json.loads(text) for text in _job.exchange(json.dumps(value))] if count() > 1 else [value]


def from_first(ask: Callable[[], Any]) -> Any:
    """What `ask` says on process 0, JSON types, on all of them: of what may change while processes look at it."""
    return exchange(ask() if number() == 0 else None)[0]


def gather(value: T) -> list[T]:
    """As `exchange`, of whatever can be pickled and may be large: it goes from device to device."""
    if count() == 1:
        return [value]
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    content = pickle.dumps(value)
    sizes = process_allgather(np.int32(len(content))).ravel()
    padded = content.ljust(1 << int(sizes.max()).bit_length())  # few lengths, for each is a program
    rows = process_allgather(np.frombuffer(padded, np.uint8))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def turns(total: int) -> range:
    """Which of so many items are this process's, where they are dealt out in turn: item i is that of i % count."""
    return range(number(), total, count())


def in_turn(own: Iterable[T]) -> Iterator[T]:
    """What all processes make of items that were dealt out in turn, in the order of the items, on all of them.

    Every process has to take as many; the last ones may have made one less than the first.

    Args:
        own: what this process makes of its `turns`; see `gather`.
    """
    if count() == 1:
        yield from own
        return
    own, more = iter(own), True
    while more:
        made = gather(list(itertools.islice(own, 1)))
        yield from itertools.chain.from_iterable(made)
        more = bool(made[-1])


def agree(value: Any, what: str) -> None:
    """Refuses to go on where a value differs between processes.

    Args:
        value: JSON types.
        what: it is, the beginning of a dotted path.

    Raises:
        ConfigError: names the first difference, both values and hosts.
    """
    first, *others = exchange(value)
    for number, other in enumerate(others, 1):
        if difference := first_difference(first, other, what):
            path, a, b = difference
            raise ConfigError(
                f"{path} is {a!r} on {_job.name(0)}, but {b!r} on {_job.name(number)}: start all processes with the "
                "same command, files and packages"
            )


def leave_to_first() -> None:
    """Lets process 0 go on as if it were by itself; the others end here, together with it."""
    if _job and _job.number:
        leave()
        sys.exit(0)
    if _job:
        _job.together = False


def leave() -> None:
    """Ends the job when all processes have come here."""
    global _job
    if _job:
        import jax

        _job.barrier("leave")
        _job, job = None, _job
        jax.distributed.shutdown()  # all meet again
        job.ended.set()
        if job.board:
            job.board.close()


def give_up(error: BaseException) -> None:
    """Ends this process with exit status 1, and the others with a line that says why; nothing for a single process.

    What is not a plain `UserError` may be the consequence of a process that is gone: whoever watches speaks first.
    """
    if _job is None:
        return
    told = isinstance(error, UserError)
    if not told or error.__cause__ is not None:
        time.sleep(PATIENCE + 2 * PERIOD)
    text = str(error) if told else f"{type(error).__name__}: {error}".split("\n")[0]
    if not told:
        traceback.print_exception(error)
    _job.end(f"{_job.name(_job.number)} ended: {text}")


def _give_up_waiting(address: str, count: int, which: int) -> None:
    print(
        f"error: process {which} (host {socket.gethostname()}) did not meet all {count} processes of the job at "
        f"{address} within {TOGETHER} s: start all of them, with an address of process 0 that each can reach",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


class _Board:
    """The service through which processes find each other, in a program of its own beside process 0.

    Where process 0 holds it, as JAX has it, and is killed, the others are aborted on the spot, without a word of why.
    """

    def __init__(self, address: str, count: int):
        options = [f"[::]:{address.rpartition(':')[2]}", str(count), str(HEARTBEAT), str(PATIENCE + 4 * PERIOD)]
        self._program = subprocess.Popen([sys.executable, "-c", _BOARD, *options], stdin=subprocess.PIPE)

    def close(self) -> None:
        """Takes it away."""
        self._program.communicate(b"done")


_BOARD = """
import signal, sys, time
from jaxlib import _jax
for number in (signal.SIGINT, signal.SIGTERM):  # sent to all programs of a job
    signal.signal(number, signal.SIG_IGN)
address, count, heartbeat, patience = sys.argv[1:]
service = _jax.get_distributed_runtime_service(address, int(count), heartbeat_timeout=int(heartbeat))
if sys.stdin.read() != "done":  # process 0 is gone: the others have to find out
    time.sleep(float(patience))
service.shutdown()
"""


class _Job:
    """Processes that know each other: each says now and then that it lives; process 0 watches all, and all watch it."""

    def __init__(self, client, number: int, count: int, board: _Board | None):
        self.client, self.number, self.count, self.board = client, number, count, board
        self.together = True  # whether all processes do the same
        self.ended, self._ending = threading.Event(), threading.Lock()
        self._calls = itertools.count()
        self._hosts = {number: socket.gethostname()}
        client.key_value_set(f"ringmoe/hosts/{number}", self._hosts[number])
        self._heard = {other: time.monotonic() for other in (range(1, count) if number == 0 else [0])}
        self._seen: dict[int, str] = {}
        for work in (self._talk, self._judge):
            threading.Thread(target=work, daemon=True).start()

    def name(self, number: int) -> str:
        """A process in words."""
        if number not in self._hosts:
            self._listen()
        host = f" (host {self._hosts[number]})" if number in self._hosts else ""  # unknown until all have met
        return f"process {number} of {self.count}{host}"

    def barrier(self, name: str, seconds: float = LONG) -> None:
        """Waits for all others."""
        self.client.wait_at_barrier(f"ringmoe/{name}", int(1000 * seconds))

    def exchange(self, text: str) -> list[str]:
        """The texts of all processes, by number."""
        call = f"exchange/{next(self._calls)}"
        self.client.key_value_set(f"ringmoe/{call}/{self.number}", text)
        self.barrier(call)
        return [text for _, text in self._read(call)]

    def end(self, word: str) -> None:
        """Says why, here and to the others, and ends this process."""
        self._ending.acquire()  # and never again: the first word counts
        sys.stdout.flush()
        print(f"error: {word}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):  # somebody else spoke before
            self.client.key_value_set("ringmoe/word/0", word)
        with contextlib.suppress(Exception):  # process 0 holds the messages: it stays until the others have read them
            self.barrier("end", 2 * PERIOD)
        os._exit(1)

    def _read(self, folder: str) -> list[tuple[int, str]]:
        """Number of a process and its text, by number."""
        found = self.client.key_value_dir_get(f"ringmoe/{folder}/")
        return sorted((int(key.rpartition("/")[2]), text) for key, text in found)

    def _listen(self) -> None:
        """Learns where the others are."""
        with contextlib.suppress(Exception):
            self._hosts |= dict(self._read("hosts"))

    def _talk(self) -> None:
        """Says that this process lives, and listens who else does, and whether one gave up."""
        for beat in itertools.count():
            try:
                self.client.key_value_set(f"ringmoe/lives/{self.number}", str(beat), allow_overwrite=True)
                for number, text in self._read("lives"):
                    if number in self._heard and self._seen.get(number) != text:
                        self._seen[number], self._heard[number] = text, time.monotonic()
                if len(self._hosts) < self.count:
                    self._listen()
                words = self._read("word")
            except Exception:
                words = []  # process 0 does not answer: `_judge` knows for how long
            if words and not self.ended.is_set():
                self.end(words[0][1])
            if self.ended.wait(PERIOD):
                return

    def _judge(self) -> None:
        """Ends this process where another one was not heard of for too long."""
        while not self.ended.wait(1.0):
            for other, heard in self._heard.items():
                if time.monotonic() - heard > PATIENCE:
                    self.end(
                        f"{self.name(other)} is gone: nothing was heard of it for {PATIENCE:.0f} s. The same command, "
                        "started again on all hosts, goes on from the last checkpoint"
                    )


def _of_environment() -> tuple[str, int, int, list[int] | None] | None:
    """Address of process 0, number of processes, number of this one and its devices; None for a process by itself."""
    stated = next((pair for pair in _NUMBERS if all(name in os.environ for name in pair)), None)
    count, which = (_integer(name) for name in stated) if stated else (1, 0)
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        if stated is None:
            raise ConfigError(
                "JAX_COORDINATOR_ADDRESS is set, but not JAX_NUM_PROCESSES and JAX_PROCESS_ID: set all three in every "
                "process, or none for a process by itself"
            )
        if not 0 <= which < count or ":" not in address:
            raise ConfigError(
                f"JAX_COORDINATOR_ADDRESS={address} with {stated[0]}={count} and {stated[1]}={which}: wanted host:port "
                "and numbers from 0 below their count"
            )
        return (address, count, which, None) if count > 1 else None
    if cluster := _cluster():
        *found, devices = cluster.auto_detect_unset_distributed_params(None, None, None, None, cluster.name, TOGETHER)
        return (*found, None if "JAX_LOCAL_DEVICE_IDS" in os.environ else devices)
    if count > 1:
        raise ConfigError(
            f"{stated[0]}={count}, but nothing says where process 0 is: set JAX_COORDINATOR_ADDRESS to its host:port "
            "in every process"
        )
    return None


def _cluster():
    """The TPU slice, SLURM step or the like of several processes that JAX recognises; None where it recognises none."""
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster, OmpiCluster, SlurmCluster

    slices = [GkeTpuCluster, GceTpuCluster] if "tpu" in os.environ.get("JAX_PLATFORMS", "tpu") else []
    cluster = next((cluster for cluster in (SlurmCluster, OmpiCluster, *slices) if cluster.is_env_present()), None)
    return cluster if cluster and cluster.get_process_count() > 1 else None


def _integer(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ConfigError(f"{name}={os.environ[name]}: wanted an integer") from None
