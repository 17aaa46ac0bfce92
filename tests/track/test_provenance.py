import json
import subprocess

from sparsetrain.track.provenance import about, git_state, without_secrets


def test_nothing_secret_goes_out():
    tree = {
        "checkpoint": {"url": "s3://user:hunter2@host/bucket?X-Amz-Signature=hunter2&part=1"},
        "data": {"api_key": "hunter2", "tokens": 5, "paths": ["https://hunter2@host/x"]},
    }
    text = json.dumps(without_secrets(tree))
    assert "hunter2" not in text and "host/bucket" in text and '"tokens": 5' in text and "part=1" in text


def test_git_tells_its_commit_and_whether_files_have_changed(tmp_path):
    assert git_state(tmp_path) == {}

    def git(*words):
        own = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *own, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "x")
    clean = git_state(tmp_path)
    assert len(clean["sha"]) == 40 and clean["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path) == {"sha": clean["sha"], "dirty": True}


def test_about_a_run_are_its_job_versions_and_data(tmp_path):
    (tmp_path / "env.json").write_text('{"versions": {"torch": "2"}}')
    found = about({"seed": 3}, tmp_path, data={"sha256": "ab"})
    assert found["seed"] == 3
    assert found["sparsetrain"]["versions"] == {"torch": "2"} and found["sparsetrain"]["data"] == {"sha256": "ab"}
    (tmp_path / "env.json").write_text("[" * 100_000)
    assert about({}, tmp_path)["sparsetrain"]["versions"] == {}
