"""What every verb of `sparsetrain bench` refuses in one line, before anything is measured."""

import os

import pytest

from sparsetrain.cli import main


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *words])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1
    return err


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["select", "--size", "nan"], "'--size': nan is no number of elements; allowed: 1 to 2147483647"),
        (["exchange", "--loopback", "--size", "1e30"], "1e30 is no number of elements"),
        (["scaling", "--size", "1e300"], "1e300 is no number of elements"),
        (["volume", "--size", "1e10"], "1e10 is no number of elements"),
        (["scaling", "--ranks", "1000000000"], "1000000000 is not in the range"),
        (["volume", "--ranks", "1000000000"], "1000000000 is not in the range"),
        (["codec", "--rounds", "99999999999999999999999"], "is not in the range"),
        (["auto", "--loopback", "--hosts", "100000"], "100000 is not in the range 2<=x<=512"),
        (["simulation", "--values", "zz"], "bench simulation: unknown value_code 'zz'"),
        (["simulation", "--indices", "zz"], "bench simulation: unknown index_code 'zz'"),
        (["compute", "--layer", "99999999x99999999"], "bench compute: want layers of less than 2^31 weights"),
        (["select", "--size", "1000", "--plot", "/proc/x.svg"], "--plot /proc/x.svg: cannot be written"),
        (["supports", "text_gpt", "--out", "/proc/x"], "bench supports: cannot be written"),
        (["scaling", "--supports", "/dev/zero"], "it is no file, or a huge one"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_absurd_numbers_and_places(capsys, words, line):
    assert line in refused(capsys, *words)


@pytest.mark.timeout(60)
def test_a_pipe_is_no_place_for_a_picture(capsys, tmp_path):
    os.mkfifo(tmp_path / "a.svg")
    assert "is no file" in refused(capsys, "select", "--plot", str(tmp_path / "a.svg"))


def test_memory_that_is_not_there_is_a_line(capsys, monkeypatch):
    def hungry(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("sparsetrain.bench.volume.measure", hungry)
    assert refused(capsys, "volume") == "bench volume: needs more memory than there is\n"
