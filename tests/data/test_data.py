import gzip
import hashlib
import struct

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.cli import cli
from sparsetrain.config.errors import JobError
from sparsetrain.data import fashion_mnist
from sparsetrain.data.fashion_mnist import FashionMNIST
from sparsetrain.data.sampler import Sampler
from sparsetrain.data.text import Text


@given(st.integers(8, 60), st.integers(1, 6), st.integers(0, 30), st.integers(0, 3))
def test_ranks_share_a_batch_that_does_not_depend_on_their_number(size, ranks, position, seed):
    union = torch.cat([Sampler(size, 4, rank, ranks, seed).indices(position) for rank in range(ranks)])
    assert torch.equal(union, Sampler(size, 4, 0, 1, seed).indices(position))


def epoch(sampler, position):
    """Return the samples of as many batches as an epoch has, and the position after them."""
    found = []
    for _ in range(sampler.size // sampler.batch):
        found += sampler.indices(position).tolist()
        position = sampler.after(position)
    return found, position


@given(st.integers(4, 50), st.integers(0, 3))
def test_an_epoch_takes_each_sample_at_most_once_and_the_next_one_another_order(size, seed):
    sampler = Sampler(size, 4, 0, 1, seed)
    first, position = epoch(sampler, 0)
    assert len(set(first)) == len(first) == size // 4 * 4
    assert epoch(sampler, 0)[0] == first
    second, _ = epoch(sampler, position)
    assert len(set(second)) == len(second)
    if size > 30:
        assert first != second


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="global batch of 8"):
        Sampler(7, 8, 0, 2, 0)


def test_the_default_text_is_the_standard_library_and_says_so():
    text = Text(Text.Config())
    about = text.describe()
    assert about["bytes"] > 2_000_000 and len(about["sha256"]) == 64
    x, y = text.train_batch(torch.tensor([0, 5]))
    assert x.shape == y.shape == (2, 128) and torch.equal(x[:, 1:], y[:, :-1])


def test_held_out_text_is_apart_from_the_training_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(200)))
    text = Text(Text.Config(path=str(path), context=4, eval_fraction=0.25))
    train = text.train_batch(torch.arange(text.train_size))[1].flatten().tolist()
    held = text.eval_batch(torch.arange(text.eval_size))[1].flatten().tolist()
    assert max(train) < 150 and min(held) >= 150 and len(set(held)) == len(held)


@pytest.mark.parametrize(("content", "says"), [(None, "no file matches"), (b"ab", "too few")])
def test_missing_or_tiny_text_is_a_mistake_of_the_job(tmp_path, content, says):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JobError, match=says):
        Text(Text.Config(path=str(path)))


def idx(count: int, shape: tuple[int, ...], magic: int) -> bytes:
    content = bytes(i % 251 for i in range(count * 28 * 28)) if shape else bytes(i % 10 for i in range(count))
    return struct.pack(f">{2 + len(shape)}I", magic, count, *shape) + content


def write(folder, count: int = 20) -> dict[str, bytes]:
    files = {}
    for name in fashion_mnist.FILES:
        files[name] = idx(count, (28, 28), 2051) if "images" in name else idx(count, (), 2049)
        (folder / f"{name}.gz").write_bytes(gzip.compress(files[name]))
    return files


def test_images_are_read_from_a_named_folder(tmp_path):
    write(tmp_path)
    data = FashionMNIST(FashionMNIST.Config(root=str(tmp_path)))
    x, y = data.train_batch(torch.tensor([0, 7]))
    assert x.shape == (2, 1, 28, 28) and x.dtype == torch.float32 and y.tolist() == [0, 7]
    assert (data.train_size, data.eval_size) == (20, 20)


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, None])
def test_damaged_images_are_a_mistake_of_the_job(tmp_path, damage):
    files = write(tmp_path)
    name = "train-images-idx3-ubyte"
    (tmp_path / f"{name}.gz").write_bytes(files[name] if damage is None else gzip.compress(damage))
    with pytest.raises(JobError, match=r"data\.root"):
        FashionMNIST(FashionMNIST.Config(root=str(tmp_path)))


def test_a_missing_folder_says_where_it_looked(tmp_path):
    with pytest.raises(JobError, match=r"data\.root: no Fashion-MNIST in .*dataset-fashion-mnist"):
        FashionMNIST(FashionMNIST.Config(root=str(tmp_path)))


def test_a_download_is_checked_and_cached(tmp_path, monkeypatch):
    (tmp_path / "up").mkdir()
    files = write(tmp_path / "up")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "SYSTEM", tmp_path / "nowhere")
    monkeypatch.delenv("SPARSETRAIN_DATA", raising=False)
    config = FashionMNIST.Config(download=True, url=f"file://{tmp_path}/up/")
    with pytest.raises(JobError, match="has sha256"):
        FashionMNIST(config)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(fashion_mnist, "FILES", sums)
    assert FashionMNIST(config).train_size == 20
    assert FashionMNIST(FashionMNIST.Config()).train_size == 20


@pytest.mark.skipif(not fashion_mnist.SYSTEM.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_set_has_its_known_checksums():
    for name, expected in fashion_mnist.FILES.items():
        assert hashlib.sha256(fashion_mnist._read(fashion_mnist.SYSTEM, name)).hexdigest() == expected


def test_missing_files_are_told_before_workers_start_where_these_will_be_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--dry-run"]):
        done = CliRunner().invoke(cli, ["run", "fashion_mnist", f"data.root={tmp_path}", *more])
        assert str(done.exception).startswith(f"data.root: no Fashion-MNIST in {tmp_path}; ")
    assert not (tmp_path / "runs").exists()
    for elsewhere in ("cluster.address=head:6379", "data.download=true"):
        done = CliRunner().invoke(cli, ["run", "fashion_mnist", f"data.root={tmp_path}", elsewhere, "--dry-run"])
        assert done.exit_code == 0, done.exception
