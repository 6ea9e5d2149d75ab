"""What processes of one job say to each other, and how they end: no model, nothing compiled."""

import os
import signal

import pytest

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.parallel import processes
from ringmoe_jax.parallel.lock import lock
from tests.helpers import jobs

PROGRAM = """
import sys, time
from experiments.run import cli
from ringmoe_jax.errors import DataError
from ringmoe_jax.parallel import processes
from ringmoe_jax.parallel.lock import lock

@cli.entry_point
def main(folder):
    cli.start("", trains=True)
    number = processes.number()
    print(number, processes.exchange([number, "x" * number]), processes.from_first(lambda: number), file=sys.stderr)
    processes.agree({"train": {"steps": [5]}}, "config")
    with lock(folder):
        {body}

main("{folder}")
"""


def start(tmp_path, body, count=2):
    return jobs.start(tmp_path, ["-c", program(tmp_path / "run", body)], count)


def program(folder, body):
    return PROGRAM.replace("{body}", body).replace("{folder}", str(folder))


def test_they_hear_each_other_deal_out_items_in_turn_and_end_together(tmp_path):
    """Items: none, fewer than processes, as many, and one more than an even share; they come back in order."""
    own = "f'{i} by {number}' for i in processes.turns(total)"
    dealt = f"print([list(processes.in_turn({own})) for total in (0, 1, 2, 5)], file=sys.stderr)"
    job = start(tmp_path, f"{dealt}; time.sleep(number)")
    assert job.finish() == [0, 0]
    five = [f"{i} by {i % 2}" for i in range(5)]
    for number in (0, 1):
        lines = [line for line in job.said(number).splitlines() if not line.startswith("[Gloo]")]
        assert lines == [f"{number} [[0, ''], [1, 'x']] 0", str([[], five[:1], five[:2], five])]
    assert not (tmp_path / "run" / ".lock").read_text()


def test_what_goes_wrong_in_one_ends_all_with_its_line(tmp_path):
    job = start(tmp_path, "exec('if number: raise DataError(\"no such tile\")'); time.sleep(100)")
    assert job.finish() == [1, 1]
    host = os.uname().nodename
    for number in (0, 1):
        assert job.said(number).splitlines()[1:] == [f"error: process 1 of 2 (host {host}) ended: no such tile"]


def test_values_that_differ_are_refused_by_all(tmp_path):
    job = start(tmp_path, "processes.agree({'jax': 7, 'steps': {'a': number}}, 'run')")
    assert job.finish() == [1, 1]
    for number in (0, 1):
        assert "run.steps.a is 0 on process 0 of 2" in job.said(number)
        assert "but 1 on process 1 of 2" in job.said(number)


def test_one_writer_of_a_folder(tmp_path):
    """Who comes second is told who holds the folder, and that one goes on; the lock of a killed program is gone."""
    first = start(tmp_path / "a", "print('held', file=sys.stderr, flush=True); time.sleep(100)", count=1)
    first.wait_until(lambda: "held" in first.said())
    (tmp_path / "a" / "run").rename(tmp_path / "b")  # the folder keeps its lock under any name
    wanted = f"{tmp_path / 'b'} is being written by process {first.processes[0].pid} on"
    with pytest.raises(ConfigError, match=wanted), lock(tmp_path / "b"):
        pass
    assert first.processes[0].poll() is None
    first.kill()
    with lock(tmp_path / "b"):
        pass


def test_a_job_that_is_not_complete_ends_with_a_line(tmp_path):
    patience = "from ringmoe_jax.parallel import processes; processes.TOGETHER = 3"
    job = jobs.start(tmp_path, ["-c", f"{patience}\n{program(tmp_path / 'run', 'pass')}"], count=2)
    job.processes[1].send_signal(signal.SIGKILL)
    assert job.finish() == [1, -signal.SIGKILL]
    assert "did not meet all 2 processes of the job at 127.0.0.1:" in job.said()
    assert job.said().startswith("error: process 0 (host ")


@pytest.mark.parametrize(
    ("killed", "patience"),
    [
        (1, "processes.PERIOD, processes.PATIENCE = 1.0, 8.0"),
        pytest.param(0, "", marks=pytest.mark.slow),
        pytest.param(1, "", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_killed_is_named(tmp_path, killed, patience):
    body = "print('up', file=sys.stderr, flush=True); time.sleep(300)"
    hurried = f"from ringmoe_jax.parallel import processes\n{patience}\n{program(tmp_path / 'run', body)}"
    job = jobs.start(tmp_path, ["-c", hurried], 2)
    job.wait_until(lambda: all("up" in job.said(number) for number in (0, 1)))
    job.processes[killed].send_signal(signal.SIGKILL)
    assert_named(job, killed)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["jax.devices", "jax.distributed.shutdown"])
@pytest.mark.parametrize("killed", [0, 1])
def test_so_is_one_that_is_killed_while_they_meet_or_part(tmp_path, killed, where):
    dies = f"if os.environ['JAX_PROCESS_ID'] == '{killed}': {where} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    job = jobs.start(tmp_path, ["-c", f"import os, signal, jax\n{dies}\n{program(tmp_path / 'run', 'pass')}"], count=2)
    job.processes[killed].wait(120)
    assert_named(job, killed)


def assert_named(job, killed):
    statuses = job.finish(60)  # what is promised
    assert statuses[killed] == -signal.SIGKILL
    assert statuses[1 - killed] == 1
    *_, line = job.said(1 - killed).splitlines()
    assert line.startswith(
        f"error: process {killed} of 2 (host {os.uname().nodename}) is gone: nothing was heard of it"
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_COORDINATOR_ADDRESS is set, but not JAX_NUM_PROCESSES"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "JAX_NUM_PROCESSES=2 and JAX_PROCESS_ID=2: wanted host:port and numbers from 0",
        ),
        ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES=two: wanted an integer"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE=4, but nothing says where"),
    ],
)
def test_an_environment_that_says_too_little(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        processes.connect()


SLURM = {"SLURM_JOB_ID": "5000", "SLURM_STEP_NODELIST": "node[07-08]", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}, ("a:1", 4, 3, None)),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
            ("a:1", 4, 3, None),
        ),
        (SLURM | {"SLURM_PROCID": "1"}, ("node07:62344", 2, 1, [0])),  # port 61440 + 5000 % 4096
        (SLURM | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        (
            {
                "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            },
            ("10.96.0.1:62624", 2, 1, [1]),
        ),
    ],
)
def test_what_launchers_say(monkeypatch, environment, wanted):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes._of_environment() == wanted


def test_the_first_does_what_one_can_do_and_the_others_wait(tmp_path):
    """As in `benchmark`: it may ask nobody, and a folder is its own."""
    text = program(tmp_path / "run", "time.sleep(2); print('done', file=sys.stderr)")
    job = jobs.start(tmp_path, ["-c", text.replace("trains=True", "alone=True")], count=2)
    assert job.finish() == [0, 0]
    assert job.said(0) == "0 [[0, '']] 0\ndone\n"
    assert job.said(1) == ""
