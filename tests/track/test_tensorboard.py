import importlib
import importlib.util

import pytest

from sparsetrain.track.notes import Alert, Histogram, Table
from sparsetrain.track.tensorboard import FOLDER, TensorBoardSink, markdown

MISSING = importlib.util.find_spec("tensorboard") is None


def run(folder):
    said = []
    sink = TensorBoardSink(folder, said.append)
    for step in range(1, 4):
        sink.log({"train/step": step, "train/loss": 1.0 / step})
    notes = [Histogram("residual", (1, 2), (-1.0, 0.0, 1.0)), Table("ranks", ("rank",), ((0,),)), Alert("slow", "x")]
    sink.tell(3, notes)
    sink.close("finished")
    return said


@pytest.mark.skipif(not MISSING, reason="tensorboard is installed")
def test_without_the_package_there_is_one_line(tmp_path):
    assert run(tmp_path) == [
        "TensorBoard is switched off for this run: RuntimeError: the package tensorboard is missing: "
        "pip install sparsetrain[tensorboard]"
    ]


@pytest.mark.skipif(MISSING, reason="the package tensorboard is not installed")
def test_scalars_histograms_and_texts_are_written(tmp_path):
    assert run(tmp_path) == []
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(tmp_path / FOLDER))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert events.Tags()["histograms"] == ["histograms/residual"]
    assert set(events.Tags()["tensors"]) == {"tables/ranks/text_summary", "alerts/slow/text_summary"}


def test_a_table_is_markdown():
    text = markdown(Table("x", ("name", "value"), (("a|b", 0.123456), ("c", None))))
    assert text.splitlines() == ["| name | value |", "| --- | --- |", "| a/b | 0.1235 |", "| c |  |"]
