"""Google Cloud Storage on this machine: an emulator, which tests talk to as to the real one.

As a program it is the emulator of PyPI with what TensorStore needs beyond it: the generation of an object is a header
of what is read, and requests may be about one generation alone.
"""

import contextlib
import functools
import http
import socket
import subprocess
import sys
import time

from tests.helpers import jobs

NAME = "tests"  # of the bucket that is there
# What gcsfs and TensorStore look at for where the store is.
ADDRESSES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")


@contextlib.contextmanager
def served(monkeypatch):
    """An empty store, which this process and those that it starts find; gives the address of its bucket."""
    port = jobs.free_port()
    command, nowhere = [sys.executable, "-m", "tests.helpers.bucket", str(port)], subprocess.DEVNULL
    store = subprocess.Popen(command, cwd=jobs.ROOT, stdout=nowhere, stderr=nowhere)
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            assert store.poll() is None, "the emulator ended"
            assert time.monotonic() < deadline, "the emulator does not answer"
            time.sleep(0.1)
        for name in ADDRESSES:
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would look for credentials, at length
        yield f"gs://{NAME}"
    finally:
        store.kill()
        store.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _of_one_generation(handler):
    """A handler of the emulator that obeys `ifGenerationMatch` and `ifGenerationNotMatch`, and says the generation."""
    from gcp_storage_emulator.exceptions import NotFound

    @functools.wraps(handler)
    def run(request, response, storage, *arguments, **keywords):
        name = request.params.get("object_id") or request.query.get("name", [""])[0]
        try:
            now = storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        except NotFound:
            now = "0"
        asked = {key: values[0] for key, values in request.query.items()}
        response["x-goog-generation"] = now
        if asked.get("ifGenerationMatch", now) != now:
            response.status = http.HTTPStatus.PRECONDITION_FAILED
        elif asked.get("ifGenerationNotMatch") == now != "0":
            response.status = http.HTTPStatus.NOT_MODIFIED
        else:
            handler(request, response, storage, *arguments, **keywords)

    return run


def main(port: int) -> None:
    """Serves until it is killed."""
    from gcp_storage_emulator import server

    objects = server.objects
    changed = {h: _of_one_generation(h) for h in (objects.get, objects.download, objects.insert, objects.delete)}
    for _, handlers in server.HANDLERS:
        handlers.update({method: changed.get(handler, handler) for method, handler in handlers.items()})
    server.create_server("127.0.0.1", port, in_memory=True, default_bucket=NAME).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
