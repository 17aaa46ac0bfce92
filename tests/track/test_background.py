import threading
import time

from sparsetrain.track.background import Background
from sparsetrain.track.notes import Alert


class Slow:
    """A writer that lets itself be held."""

    def __init__(self):
        self.go, self.seen = threading.Event(), []

    def log(self, row):
        assert self.go.wait(20)
        self.seen.append(row["train/step"])

    def tell(self, step, notes):
        self.seen.append((step, notes[0].kind))

    def close(self, status):
        self.seen.append(status)


def test_what_is_given_arrives_in_order():
    writer, said = Slow(), []
    writer.go.set()
    sink = Background("x", lambda: writer, said.append)
    sink.log({"train/step": 1})
    sink.tell(1, [Alert("odd", "text")])
    sink.log({"train/step": 2})
    sink.close("finished")
    assert writer.seen == [1, (1, "odd"), 2, "finished"] and not said


def test_a_full_queue_drops_rows_is_said_once_and_costs_nothing():
    writer, said = Slow(), []
    sink = Background("x", lambda: writer, said.append, room=10, patience=0.1)
    for step in range(100_000):
        sink.log({"train/step": step})
    assert sink.dropped >= 100_000 - 11 and sink.seconds < 1.0
    began = time.monotonic()
    sink.close("finished")
    assert time.monotonic() - began < 5.0
    assert said == ["x is too slow: rows are dropped there; metrics.jsonl has them all"]
    writer.go.set()


def test_a_writer_that_cannot_open_or_fails_is_said_once_and_raises_nothing():
    class Broken(Slow):
        def log(self, row):
            raise OSError("disk full\nand more")

    def refuses():
        raise RuntimeError("missing")

    for opens, text in ((refuses, "RuntimeError: missing"), (Broken, "OSError: disk full")):
        said = []
        sink = Background("x", opens, said.append)
        for step in range(3):
            sink.log({"train/step": step})
        sink.close("failed")
        assert said == [f"x is switched off for this run: {text}"]
