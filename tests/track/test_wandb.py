"""W&B: what the real client writes, and what a server that hangs, fails or refuses costs the training."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
from wandb_files import config, history, records, segments
from wandb_server import serving

from sparsetrain.track.jsonl import read
from sparsetrain.track.wandb import run_id

ROOT = pathlib.Path(__file__).parent.parent.parent
KEY = "0123456789" * 4

LOOP = """
    import json, os, pathlib, sys, time
    from sparsetrain.config.job import Wandb
    from sparsetrain.track.jsonl import JsonlSink
    from sparsetrain.track.notes import Alert, Histogram, Table
    from sparsetrain.track.sink import Tracker
    from sparsetrain.track.wandb import WandbSink

    folder, mode, first, rows, pause, patience = pathlib.Path(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:])
    said = []
    settings = Wandb(mode=mode, artifacts=tuple(json.loads(os.environ.get("ARTIFACTS", "[]"))))
    sink = WandbSink(settings, folder, "a.run", lambda: {"seed": 3}, said.append, patience=patience)
    rowfile = JsonlSink(JsonlSink.Config(), folder / "metrics.jsonl", int(first))
    tracker = Tracker({"metrics.jsonl": lambda: rowfile, "W&B": lambda: sink}, said.append)
    began = time.perf_counter()
    for step in range(int(first) + 1, int(first + rows) + 1):
        time.sleep(pause)
        tracker.log({"train/step": step, "train/loss": 9.0 / step})
        if step % 10 == 0:
            layers = (("a.weight", "4x4", 16, 1 / step), ("a.bias", "4", 4, 1.0))
            tracker.tell(step, [
                Table("layers", ("name", "shape", "parameters", "density"), layers),
                Histogram("residual", (1, 2), (-1.0, 0.0, 1.0)),
                Alert("slow", "a step took long", "INFO"),
            ])
    trained = time.perf_counter() - began
    tracker.close("finished")
    ended = time.perf_counter() - began - trained
    print(json.dumps({"said": said, "share": sink.seconds / trained, "ended": ended, "dropped": sink.dropped}))
"""


def loop(folder: pathlib.Path, mode: str, numbers: tuple[float, ...] = (0, 20, 0.01, 10), **variables: str):
    """Return what a loop says in a process of its own, which has to end. `numbers`: the step before the first, rows,
    seconds a row, seconds that the end may wait."""
    folder.mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    own = {"PYTHONPATH": str(ROOT), "HOME": str(home), "WANDB_CACHE_DIR": str(home), "WANDB_CONFIG_DIR": str(home)}
    words = [sys.executable, "-c", textwrap.dedent(LOOP), str(folder), mode, *map(str, numbers)]
    done = subprocess.run(
        words, env={**kept, **own, **variables}, capture_output=True, text=True, timeout=80, check=False, cwd=home
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(120)
def test_the_client_writes_rows_tables_histograms_pictures_and_alerts_and_a_second_start_goes_on(tmp_path):
    folder = tmp_path / "run"
    for first in (0, 20):
        told = loop(folder, "offline", (first, 20, 0.01, 20))
        assert told["said"] == [] and told["dropped"] == 0
    identity = json.loads((folder / "wandb.json").read_text())["id"]
    assert identity.startswith("a-run-")
    found = segments(folder)
    assert len(found) == 2 and {path.name for path in found} == {f"run-{identity}.wandb"}
    steps = [row["train/step"] for path in found for row in history(path) if "train/loss" in row]
    assert steps == list(range(1, 41))
    media = [row for row in history(found[0]) if any(key.startswith("tables/layers") for key in row)]
    assert len(media) == 2 and media[-1]["train/step"] == 20
    kinds = {key.split("/")[0] for row in media for key in row}
    assert {"tables", "histograms", "masks"} <= kinds
    assert config(found[0])["seed"] == 3
    kept = list(records(found[0]))
    alerts = [record.alert.title for record in kept if record.WhichOneof("record_type") == "alert"]
    assert alerts == ["slow", "slow"]  # Alerts rations them, and the server does
    metrics = {record.metric.name: record.metric for record in kept if record.WhichOneof("record_type") == "metric"}
    assert metrics["eval/loss"].summary.min and metrics["eval/loss"].step_metric == "train/step"
    tables = sorted(folder.glob("wandb/offline-run-*/files/media/table/tables/*.json"))
    assert json.loads(tables[0].read_text())["columns"] == ["name", "shape", "parameters", "density"]
    pictures = list(folder.glob("wandb/offline-run-*/files/media/images/masks/*.png"))
    assert pictures and pictures[0].read_bytes()[:4] == b"\x89PNG"


@pytest.mark.timeout(120)
def test_model_and_masks_of_the_newest_complete_checkpoint_go_along(tmp_path):
    folder = tmp_path / "run"
    for step, complete in ((10, True), (20, True), (30, False)):
        saved = folder / f"checkpoints/step_{step:08d}"
        saved.mkdir(parents=True)
        for name in ("model", "masks"):
            (saved / f"{name}.safetensors").write_bytes(b"x" * step)
        if complete:
            (saved / "COMPLETE").touch()
    told = loop(folder, "offline", (0, 5, 0.01, 20), ARTIFACTS='["model", "masks"]')
    assert told["said"] == []
    kept = [record for path in segments(folder) for record in records(path)]
    found = {each.artifact.type: each.artifact for each in kept if each.WhichOneof("record_type") == "artifact"}
    assert set(found) == {"model", "masks"}
    for name, artifact in found.items():
        (entry,) = artifact.manifest.contents
        assert entry.path == f"{name}.safetensors" and entry.size == 20


@pytest.mark.timeout(150)
def test_segments_are_synced_in_their_order_into_one_run(tmp_path):
    """By the client's own `wandb sync`, as docs/tracking.md has it, to a server that notes what comes."""
    folder = tmp_path / "run"
    for first in (0, 20):
        loop(folder, "offline", (first, 20, 0.01, 20))
    identity = json.loads((folder / "wandb.json").read_text())["id"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    home = {"HOME": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path)}
    with serving("works") as server:
        reached = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_address[1]}", "WANDB_API_KEY": KEY}
        words = [sys.executable, "-m", "wandb", "sync", *map(str, sorted(folder.glob("wandb/offline-run-*")))]
        done = subprocess.run(
            words, env={**kept, **home, **reached}, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        streams = [(path, json.loads(body)) for path, body in server.seen if path.endswith("/file_stream")]
    assert streams and {path.split("/")[-2] for path, _ in streams} == {identity}
    lines = [json.loads(line) for _, tree in streams for line in sent(tree)]
    steps = [row["train/step"] for row in lines if "train/loss" in row]
    assert steps == list(range(1, 41))


def sent(tree: dict) -> list[str]:
    """The lines of the history in one message of the client."""
    return tree.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "mood",
    ["401", "works", *(pytest.param(each, marks=pytest.mark.slow) for each in ("hang", "500", "works until init"))],
)
def test_a_server_that_fails_costs_the_training_nothing(tmp_path, mood):
    folder = tmp_path / "run"
    kept = mood in ("401", "works", "works until init")  # the client writes down what the server does not take
    patience = 15.0 if kept else 3.0
    with serving(mood) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        told = loop(folder, "online", (0, 200, 0.005, patience), WANDB_BASE_URL=address, WANDB_API_KEY=KEY)
        assert server.seen
    assert told["share"] < 0.01
    assert [row["train/step"] for row in read(folder / "metrics.jsonl")] == list(range(1, 201))
    assert len(told["said"]) <= 1 and told["ended"] < patience + 1.0
    if not mood.startswith("works"):
        assert told["said"][0].startswith("W&B ")
    if kept:
        steps = [row["train/step"] for path in segments(folder) for row in history(path) if "train/loss" in row]
        assert steps == list(range(1, 201))
    written = "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
    assert KEY not in written and KEY not in str(told)


@pytest.mark.slow
def test_a_server_that_is_not_there_is_said_once(tmp_path):
    told = loop(tmp_path / "run", "online", (0, 20, 0.01, 3), WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=KEY)
    assert told["share"] < 0.01 and len(told["said"]) == 1


def test_the_agent_of_a_sweep_gives_the_id_and_a_torn_file_another(tmp_path):
    sweep = {"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "abc12345"}
    assert run_id(tmp_path, "a", sweep) == run_id(tmp_path, "a", {}) == "abc12345"
    (tmp_path / "wandb.json").write_text('{"id')
    assert run_id(tmp_path, "b.c", {}).startswith("b-c-")
