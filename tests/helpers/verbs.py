"""Verbs as the command line calls them, in this process."""

import pytest


def run(verb, *arguments):
    """Calls the verb of a module; its exit status."""
    with pytest.raises(SystemExit) as ended:
        verb.main(list(map(str, arguments)))
    return ended.value.code
