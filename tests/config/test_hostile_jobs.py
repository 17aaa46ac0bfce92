"""Job files that nobody writes by mistake: refused in a line, in no time, without memory."""

import os

import pytest

from sparsetrain.config.job import Job
from sparsetrain.config.load import JobError, load_job, parse
from sparsetrain.worker.existing import finished

LISTS = "".join(f"l{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MAPPINGS = "".join(f"l{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n" for i in range(1, 12))
MERGES = "".join(f"l{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
ANCHORS = {
    "lists": f"name: x\nl0: &a0 [x]\n{LISTS}",
    "mappings": f"name: x\nl0: &a0 {{x: 1}}\n{MAPPINGS}",
    "merges": f"name: x\nl0: &a0 {{x: 1}}\n{MERGES}",
    "itself": "name: x\ntrain: &t {steps: *t}\n",
}
VALUES = {
    "no digits": ('train: {steps: !!int ""}', "not readable as YAML"),
    "no truth": ("train: {steps: !!bool maybe}", "not readable as YAML"),
    "sixties": (f"train: {{steps: {'1:' * 50_000}1}}", "a number of 100001 characters"),
    "sixties of a float": (f"train: {{steps: {'1:' * 20_000}1.5}}", "a number of 40003 characters"),
    "hexadecimal": (f"seed: 0x{'f' * 5000}", "a number of 5002 characters"),
    "digits": (f"seed: {'9' * 90}", "seed: must be less than or equal to"),
    "name that is a mapping": ("exchange: {regime: auto}\noptimizer: {name: {a: 1}}", "optimizer: give a name"),
    "depth": ("model: " + "[" * 5000, "not readable as YAML"),
    "half of a character": ('data: {name: text, path: "\\ud800"}', "data.path: must be a valid string"),
    "objects": ("model: !!python/object/apply:os.system [true]", "not readable as YAML"),
    "length": (f"# {'x' * (1 << 18)}", "longer than"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ANCHORS.values(), ids=ANCHORS)
def test_anchors_that_stand_for_too_much_are_refused_here_and_in_a_run_folder(tmp_path, text):
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(JobError, match="its anchors stand for more than"):
        load_job(str(tmp_path / "job.yaml"))
    with pytest.raises(JobError, match="its anchors stand for more than"):
        finished(parse({"name": "x"}), tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("text", "says"), VALUES.values(), ids=VALUES)
def test_values_that_no_job_has_are_refused_in_a_line(tmp_path, text, says):
    path = tmp_path / "job.yaml"
    path.write_text(f"name: x\n{text}\n")
    with pytest.raises(JobError, match=says) as caught:
        load_job(str(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.timeout(20)
def test_a_file_without_an_end_is_refused():
    with pytest.raises(JobError, match="/dev/zero: longer than"):
        load_job("/dev/zero")


def test_a_pipe_is_read_since_shells_give_one(tmp_path):
    read, write = os.pipe()
    os.write(write, b"name: x\n")
    os.close(write)
    try:
        assert isinstance(load_job(f"/proc/self/fd/{read}"), Job)
    finally:
        os.close(read)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/x", ".x", "a\0b", "a\nb", "é", "x\n", ""])
def test_a_name_that_leads_out_of_the_folder_is_refused(name):
    with pytest.raises(JobError, match=r"^name: "):
        parse({"name": name})
