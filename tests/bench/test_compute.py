import json

import pytest

from sparsetrain.bench.acceleration import measure as accelerate
from sparsetrain.bench.compute import COLUMNS, Setting, crossing, measure
from sparsetrain.cli import main
from sparsetrain.config.errors import JobError

TINY = (
    "model={name: mlp, hidden: [64, 64]}",
    "masks={method: rigl, sparsity: 0.9, every: 4}",
    "exchange.regime=packed",
    "train.batch_size=8",
)


@pytest.mark.parametrize(("shape", "dtype"), [((32, 48), "fp32"), ((32, 48), "bf16"), ((32, 32, 3, 3), "fp32")])
def test_every_way_that_fits_has_a_row_and_one_of_them_is_taken(shape, dtype):
    setting = Setting(layers=(shape,), batches=(4, 8), densities=(0.5, 0.1), rounds=1, pixels=5, dtype=dtype)
    result = measure(setting)
    assert all(set(row) == set(COLUMNS) for row in result["rows"])
    assert {row["way"].removesuffix(" (auto)") for row in result["rows"]} >= {"masked", "smaller"}
    for batch in (4, 8):
        for density in (0.5, 0.1):
            same = [r["way"] for r in result["rows"] if (r["batch"], r["density"]) == (batch, density)]
            assert sum(way.endswith("(auto)") for way in same) == 1
    assert [each["batch"] for each in result["crossings"]] == [4, 8]


def test_what_was_measured_is_kept_until_it_is_asked_for_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    call = ["bench", "compute", "--layer", "16x16", "--batch", "4", "--density", "0.5", "--rounds", "1", "--json"]

    def found(*more: str):
        with pytest.raises(SystemExit):
            main([*call, *more])
        out, err = capsys.readouterr()
        return json.loads(out), "--fresh measures again" in err

    first, told = found()
    assert not told and found() == (first, True)
    anew, told = found("--fresh")
    assert not told and anew != first and found() == (anew, True)
    assert not found("--threads", "2")[1]
    for path in (tmp_path / "sparsetrain/bench").iterdir():
        path.write_text('{"measured": "once"}')
    assert not found()[1] and found()[1]


def test_a_crossing_lies_between_the_densities_around_it():
    def rows(**speedups):
        return [
            {
                "way": "sparse (auto)" if s > 1 else "sparse",
                "density": float(d[1:]) / 100,
                "speedup": s,
                "speedup_forward": 1.5,
            }
            for d, s in speedups.items()
        ]

    found = crossing(rows(d10=2.0, d20=0.5))
    assert found["training"] == pytest.approx(0.02**0.5) and found["inference"] == 0.2
    assert crossing(rows(d10=0.9, d20=0.5))["training"] is None
    assert crossing([])["training"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layer", "10"], "--layer 10: must be two or four whole numbers"),
        (["--layer", "10x10x3"], "--layer 10x10x3: must be two or four whole numbers"),
        (["--pixels", "0"], "1 pixel"),
        (["--device", "cuda"], "there is no CUDA device here; allowed: --device cpu"),
        (["--layer", "0x4"], "want layers of at least 1 x 1"),
        (["--density", "2"], "densities above 0 and at most 1"),
        (["--rounds", "0"], "at least 1 round"),
    ],
)
def test_wrong_options_are_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "compute", *arguments])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and said in told and len(told.strip().splitlines()) == 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("every", [1, 2])
def test_a_training_step_is_measured_dense_masked_and_sparse(every):
    result = accelerate("fashion_mnist", (*TINY, f"exchange.every={every}"), "sparse", steps=2, rounds=2, threads=1)
    assert [row["weights"] for row in result["rows"]] == ["dense", "masked", "sparse"]
    held = {row["weights"]: row["of_dense"] for row in result["rows"]}
    assert held["dense"] == 1 and held["sparse"] < 0.5 < held["masked"]
    json.dumps(result)


def test_a_job_that_cannot_be_accelerated_says_why():
    with pytest.raises(JobError, match="the job has no masks"):
        accelerate("fashion_mnist", ("masks=null",), "auto", 1, 1, 1)
    with pytest.raises(JobError, match="topkast"):
        accelerate("fashion_mnist", ("masks.method=topkast",), "auto", 1, 1, 1)
