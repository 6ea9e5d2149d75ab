"""What all verbs that train share."""

import pytest

from experiments.run.fit import logged
from ringmoe_jax.errors import DataError


def test_what_is_printed_goes_to_a_log(tmp_path, capsys):
    for mode, said in (("w", "one"), ("a", "zwei für drei")):
        with logged(tmp_path / "run", mode):
            print(said)
    assert (tmp_path / "run" / "log.txt").read_text() == "one\nzwei für drei\n"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("count", [1, 100_000])
def test_a_full_disk_names_the_log(tmp_path, count):
    """Also where what was printed is only written at the end."""
    (tmp_path / "log.txt").symlink_to("/dev/full")
    wanted = r"log.txt cannot be written \(No space left on device\)"
    with pytest.raises(DataError, match=wanted), logged(tmp_path, "w"):
        print("x" * count)


def test_an_error_of_another_file_is_its_own(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), logged(tmp_path, "w"):
        (tmp_path / "absent").read_text()
