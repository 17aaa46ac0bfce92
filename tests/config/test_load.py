import pytest
import yaml

from sparsetrain.config.check import advice
from sparsetrain.config.load import JobError, load_job, parse, read_tree, to_tree, to_yaml
from sparsetrain.config.presets import PRESETS

MISTAKES = [
    ("train.stepz=3", "train.stepz: unknown key (given 3); allowed: steps", "did you mean 'steps'?"),
    ("train.steps=0", "train.steps: must be greater than or equal to 1 (given 0)", ""),
    ("train.steps=many", "train.steps: must be a valid integer", "'many'"),
    ("exchange.density=1.5", "exchange.density: must be less than or equal to 1 (given 1.5)", ""),
    ("exchange.regime=sprase", "exchange.regime: must be 'dense', 'packed', 'sparse', 'lowrank' or 'auto'", "'sprase'"),
    ("exchange.regime=sprase", "exchange.regime: must be", "did you mean 'sparse'?"),
    ("exchange.allow=[]", "exchange.allow: is empty; wants at least one", ""),
    ("exchange.sparsifier=topc", "exchange.sparsifier: unknown sparsifier 'topc'; allowed: block_topk", "'topk'"),
    ("masks.method.drop=1", "masks.method.drop: unknown key (given 1); allowed: name, ", ""),
    (
        "masks.method.name=riggle",
        "masks.method: unknown mask_method 'riggle'; allowed: acdc, deepr",
        "'rigl'",
    ),
    ("masks.sparsity=1.0", "masks.sparsity: must be less than 1 (given 1.0)", ""),
    ("optimizer.learning_rate=fast", "optimizer.learning_rate: must be a valid number", "'fast'"),
    ("model=nowhere.module:Net", "model: cannot load model 'nowhere.module:Net'", ""),
    ("model=3", "model: give a name or a mapping with 'name'; allowed: cnn, gpt, mlp", ""),
    ("name=a/b", "name: String should match pattern", "'a/b'"),
    ("wandb=1", "wandb: unknown key (given 1); allowed: version, name", ""),
    ("version=2", "version: must be 1 (given 2)", ""),
    ("exchange.every=3", "train.evaluate_every: 80 is not a multiple of exchange.every (3)", ""),
    ("masks.end=0.0", "masks.end: 0.0 must be greater than masks.begin (0.0)", ""),
    ("train.steps", "train.steps: an override has the form a.b=value", ""),
    ("train.steps.x=1", "train.steps.x: steps is not a section", ""),
    ("train.steps=true", "train.steps: must be a number (given True)", ""),
    ("model.width=true", "model.width: must be a number (given True)", ""),
    ("seed=20000000000000", "seed: must be less than or equal to 2147483647", ""),
    ("cluster.cpus_per_worker=.inf", "cluster.cpus_per_worker: must be a finite number", ""),
    ("optimizer.learning_rate=.inf", "optimizer.learning_rate: must be a finite number", ""),
    ("optimizer={name: sgd, momentum: 0, nesterov: true}", "optimizer: nesterov needs a momentum above 0", ""),
    ("data.path=''", "data.path: String should have at least 1 character", ""),
    ("train={steps: 3, steps: 4}", "steps: given twice (line 1)", ""),
    ("seed=!!timestamp abc", "seed: not readable as YAML", ""),
    ("seed=2020-99-99", "seed: not readable as YAML", ""),
    ("model=json:JSONDecoder", "model: cannot load model 'json:JSONDecoder'", "Config"),
]


@pytest.mark.parametrize(("override", "begins", "holds"), MISTAKES)
def test_each_mistake_gives_one_line_with_path_value_and_what_is_allowed(override, begins, holds):
    with pytest.raises(JobError) as caught:
        load_job("quickstart", (override,))
    line = str(caught.value)
    assert line.startswith(begins), line
    assert holds in line and "\n" not in line


def test_one_bound_of_a_number_of_workers_says_how_to_give_both(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("name: x\ncluster: {workers: 2}\n")
    with pytest.raises(JobError) as caught:
        load_job(str(path), ("cluster.workers.min=2", "cluster.workers.max=8"))
    began, way = str(caught.value).split("; give it whole: ")
    assert began == "cluster.workers.min: workers is not a section (it holds 2)"
    assert load_job(str(path), (way.strip("'"),)).cluster.workers.max == 8


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resolved_job_reads_back_as_itself(preset, tmp_path):
    job = load_job(preset)
    path = tmp_path / "job.yaml"
    path.write_text(to_yaml(job))
    assert load_job(str(path)) == job
    assert to_tree(parse(to_tree(job))) == to_tree(job)


def test_overrides_reach_components_given_by_name_and_missing_sections(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("name: x\nmodel: mlp\ndata: fashion_mnist\n")
    job = load_job(str(path), ("optimizer.name=sgd", "optimizer.momentum=0.5", "masks.method=set", "train.steps=7"))
    assert job.optimizer.config.momentum == 0.5
    assert job.masks.method.name == "set" and job.train.steps == 7
    assert load_job(str(path), ("masks.sparsity=0.5", "masks=null")).masks is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\nname: y\n", "name: given twice (line 2)"),
        ("- 1\n", "a job file holds a mapping, not list"),
        ("name: [", "not readable as YAML"),
        ("seed: 1\n", "name: is missing"),
        ("name: !!python/object/apply:os.system [ls]\n", "not readable as YAML"),
        ("? [1]\n: 2\n", "not readable as YAML"),
        ("seed: " + "[" * 5000, "not readable as YAML"),
        ("name: x\nseed: !!int abc\n", "not readable as YAML"),
    ],
)
def test_broken_files(tmp_path, text, says):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(JobError) as caught:
        load_job(str(path))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_preset_names_the_near_one():
    with pytest.raises(JobError, match=r"quickstart.*did you mean 'quickstart'"):
        load_job("quikstart")


def test_presets_are_fresh_trees():
    one = read_tree("quickstart")
    one["train"]["steps"] = 1
    assert read_tree("quickstart")["train"]["steps"] != 1
    assert yaml.safe_load(yaml.safe_dump(one)) == one


def test_adamw_on_rare_gradients_is_allowed_with_a_word():
    (line,) = advice(load_job("quickstart", ("exchange.every=1", "exchange.density=0.01")))
    assert line.startswith("exchange.every: AdamW's step shrinks by about 0.1 ")
    assert advice(load_job("quickstart")) == advice(load_job("fashion_mnist")) == []


def test_gates_that_share_buckets_with_weights_are_told_of():
    settings = ("masks.method=l0", "exchange.regime=sparse", "exchange.every=5")
    found = advice(load_job("quickstart", settings))
    assert [line.split(":")[0] for line in found] == ["exchange.bucket_elements"]
    assert not advice(load_job("quickstart", (*settings, "exchange.bucket_elements=1")))


def test_masks_that_never_change_are_allowed_with_a_word():
    (line,) = advice(load_job("quickstart", ("train.steps=50",)))
    assert line.startswith("masks.every: no update falls into these 50 steps")
    assert advice(load_job("quickstart", ("train.steps=80",))) == []


def test_options_of_a_component_that_is_left_out_are_those_of_its_default():
    job = load_job("text_gpt", ("exchange.error_feedback={}", "optimizer={learning_rate: 0.5}"))
    assert (job.optimizer.name, job.optimizer.config.learning_rate) == ("adamw", 0.5)


def test_a_file_of_anchors_is_refused_in_no_time_and_merge_keys_work(tmp_path):
    path = tmp_path / "job.yaml"
    levels = "".join(f"l{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    path.write_text(f"l0: &a0 [x]\n{levels}")
    with pytest.raises(JobError, match=r"job\.yaml: its anchors stand for more than"):
        load_job(str(path))
    path.write_text("name: x\ntrain: &t {steps: 9}\ncheckpoint: {every: 3}\nlog: {<<: {every: 7}}\n")
    assert load_job(str(path)).log.every == 7


def test_a_module_that_fails_when_it_is_imported_is_a_mistake_of_the_job(tmp_path, monkeypatch):
    (tmp_path / "leaves.py").write_text("raise SystemExit(7)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(JobError, match=r"^model: cannot load model 'leaves:Net': SystemExit: 7"):
        load_job("quickstart", ("model=leaves:Net",))


@pytest.mark.parametrize("source", ["x" * 5000, "/", "a\0b"])
def test_what_cannot_be_a_file_is_said_in_a_line(source):
    with pytest.raises(JobError):
        load_job(source)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("masks.structure=n:m masks.sparsity=0.5", r"^masks\.distribution: erk with n:m.* allowed: uniform"),
        ("masks.method=srigl", r"^masks\.structure: unstructured with srigl; allowed: fan_in"),
        ("masks.method=set masks.distribution=global", r"^masks\.distribution: global compares scores"),
        ("exchange.every=5 exchange.error_feedback=dgc", r"allowed: ef14, none, ef21, ef21_sgdm$"),
    ],
)
def test_parts_that_make_no_sense_together_are_refused_with_the_file(settings, says):
    with pytest.raises(JobError, match=says):
        load_job("quickstart", tuple(settings.split()))
