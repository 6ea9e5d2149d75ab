"""Jobs of several real processes on this machine: JAX's CPU backend, gloo between them."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import quick

ROOT = Path(__file__).parent.parent.parent


@dataclasses.dataclass
class Job:
    """Processes that were started together; what each prints lies in a file."""

    processes: list[subprocess.Popen]
    outputs: list[Path]

    def said(self, number: int = 0) -> str:
        return self.outputs[number].read_text()

    def wait_until(self, ready, seconds: float = 600) -> None:
        """Waits until `ready()`, and stops all processes where that does not come."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes):
                self.kill()
                raise AssertionError("\n".join(f"--- {i}\n{self.said(i)}" for i in range(len(self.processes))))
            time.sleep(0.05)

    def finish(self, seconds: float = 600) -> list[int]:
        """Exit statuses; a process that does not end is killed."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()


def start(folder: Path, command: list[str], count: int = 1, *, devices: int = 1, changes=()) -> Job:
    """Starts `python <command>` as `count` processes of one job, each with so many devices.

    Args:
        folder: for what they print.
        command: arguments of Python.
        count: of processes; one by itself is told of no others.
        devices: of each.
        changes: arguments that a process has beyond the command, by number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flags = f"{quick.FLAGS} --xla_force_host_platform_device_count={devices}"
    shared = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "SLURM_"))}
    shared |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
    shared |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # small programs are kept as well
    if count > 1:
        shared |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
    processes, outputs = [], [folder / f"output{number}.txt" for number in range(count)]
    for number, path in enumerate(outputs):
        own = {"JAX_PROCESS_ID": str(number)} if count > 1 else {}
        arguments = [sys.executable, *command, *dict(changes).get(number, [])]
        with path.open("w") as file:
            started = subprocess.Popen(arguments, cwd=ROOT, env=shared | own, stdout=file, stderr=subprocess.STDOUT)
        processes.append(started)
    return Job(processes, outputs)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
