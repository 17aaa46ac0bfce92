import json

from sparsetrain.track.alerts import KNOWN, Alerts


def usual(step, **changes):
    return {"train/step": step, "train/skipped": 0, "grad/residual_norm": 2.0, "time/step_s": 0.1, **changes}


def test_what_is_usual_raises_nothing(tmp_path):
    said = []
    alerts = Alerts(tmp_path, said.append)
    assert not any(alerts.look(usual(step)) for step in range(3 * KNOWN))
    assert not said and not list(tmp_path.iterdir())


def test_each_kind_is_told_once_in_a_while_and_written_down(tmp_path, monkeypatch):
    said = []
    alerts = Alerts(tmp_path, said.append)
    for step in range(KNOWN):
        alerts.look(usual(step))
    odd = {"train/skipped": 2, "grad/residual_norm": 30.0, "time/step_s": 0.5}
    assert [alert.kind for alert in alerts.look(usual(KNOWN, **odd))] == ["non-finite", "residual", "slow"]
    assert alerts.look(usual(KNOWN + 1, **odd)) == []
    assert len(said) == 3 and said[0] == "alert: non-finite: 2 steps without a finite gradient by step 10"
    rows = [json.loads(line) for line in (tmp_path / "events.rank00000.jsonl").read_text().splitlines()]
    assert [(row["step"], row["alert"]) for row in rows] == [(10, "non-finite"), (10, "residual"), (10, "slow")]


def test_too_few_rows_tell_nothing_of_what_is_usual(tmp_path):
    alerts = Alerts(tmp_path, lambda line: None)
    assert not any(alerts.look(usual(step, **{"grad/residual_norm": 100.0**step})) for step in range(KNOWN))


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path):
    said = []
    Alerts(tmp_path / "missing", said.append).look(usual(1, **{"train/skipped": 1}))
    assert said
