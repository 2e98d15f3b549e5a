"""The commands as a user types them, made small by what is appended."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import unimem
from unimem.cli import methods, sweep, train
from unimem.memory.registry import option_names
from unimem.paths import CONFIG_DIR, config_root

SMALL = [
    "data=markov",
    "data.length=96",
    "data.train_documents=8",
    "data.validation_documents=2",
    "memory.segment_length=32",
    "model.hidden_size=32",
    "model.intermediate_size=32",
    "model.num_heads=4",
    "trainer.max_steps=1",
    "trainer.warmup_steps=0",
    "evaluation.controls=false",
    "logger=none",
]


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Call a command's main function with arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["unimem", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def records(folder: Path) -> list[dict]:
    return [json.loads(f.read_text()) for f in sorted(folder.rglob("result.json"))]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["memory.reading=similarity", "memory.topk=32"], {"memory.reading": "similarity"}),
        (
            ["memory.reading=[similarity,position]", "memory.topk=4", "memory.window=512"],
            {"memory.reading": "position+similarity", "memory.topk": 4, "memory.window": 512},
        ),
        (
            ["method=unimix", "memory.management=clear_all"],
            {"memory.management": "clear_all", "memory.writing": "direct+model_forward"},
        ),
        (
            ["method=unimix", "memory.reading=position"],
            {"memory.reading": "position", "memory.window": 512},
        ),
    ],
)
def test_train(call, tmp_path, arguments, expected):
    code, printed, _ = call(train.main, *arguments, *SMALL)
    assert code == 0
    (record,) = records(tmp_path)
    assert record["memory"].items() >= expected.items()
    assert "memory own" in printed
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    recorded = yaml.safe_load((folder / "config.yaml").read_text())
    assert recorded["trainer"]["max_steps"] == 1


def sweep_layers(tmp_path: Path, layers: str) -> list[int]:
    """Run a sweep as a process, and give the layers that its records name."""
    command = [sys.executable, "-m", "unimem.cli.sweep", f"injection_layer={layers}", "jobs=2"]
    done = subprocess.run(
        [*command, *SMALL], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(
        layer for record in records(tmp_path) for layer in record["memory"]["memory.layers"]
    )


@pytest.mark.slow
def test_sweep_over_layers_from_the_first_to_the_last(tmp_path):
    assert sweep_layers(tmp_path, "range(1,22,5)") == [1, 6, 11, 16, 21]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["memory.tpok=32"], "memory.tpok is not a setting of the options chosen; did you mean"),
        (["memory.reading=nope"], f"choose from {', '.join(option_names('reading'))}"),
        (["injection_layer=99"], "injection_layer=99 but the model has 22 layers (0..21)"),
        (["injection_layer=range(1,22)"], "use unimem-sweep"),
        (["memory.topk==3"], "write name=value"),
        (["data=text", "data.path=/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_mistakes_are_answered_in_a_line(call, tmp_path, arguments, message):
    code, printed, error = call(train.main, *arguments)
    answer = f"{error}{code}"
    assert code not in (0, None)
    assert message in answer
    assert "Traceback" not in answer and "HYDRA_FULL_ERROR" not in answer
    assert len(answer.strip().splitlines()) <= 3
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_setting_that_is_given_twice_is_told(call):
    code, _, error = call(train.main, "memory.topk=4", "memory.topk=8", "name=", *SMALL)
    assert "memory.topk=4 is passed over: memory.topk=8 comes after it" in f"{error}"
    assert "a name has only letters" in f"{code}"


def test_version_and_explain_answer_without_a_run(call, tmp_path):
    code, printed, _ = call(train.main, "--version")
    assert not code and printed == f"unimem {unimem.__version__}\n"
    code, printed, _ = call(sweep.main, "--explain", "memory.topk", "jobs")
    assert not code and "memory.reading=similarity" in printed and "unimem-sweep" in printed
    code, _, error = call(train.main, "--explain=trainer.lr")
    assert "did you mean trainer.learning_rate?" in f"{code}"
    code, printed, _ = call(train.main, "--explain")
    assert not code and "trainer.clip" in printed
    assert not list(tmp_path.iterdir())


def test_help_lists_options_of_ones_own(call, tmp_path, monkeypatch):
    monkeypatch.setenv(CONFIG_DIR, "")  # the command sets it, for this process too
    (tmp_path / "own" / "data").mkdir(parents=True)
    (tmp_path / "own" / "data" / "mine.yaml").write_text("defaults: [markov]\n")
    code, printed, _ = call(train.main, "--config-dir", "own", "--help")
    assert not code and "mine" in printed and "--config-dir FOLDER" in printed


def test_unknown_study_lists_the_studies(call):
    code, _, error = call(sweep.main, "sweeps=nope")
    assert "sweeps=nope is not an option; choose from" in f"{error}{code}"


def test_sweep_help_says_how_to_run_one(call):
    code, printed, _ = call(sweep.main, "--help")
    assert not code
    for words in (
        "unimem-sweep 'injection_layer=range(1,22)'",
        "jobs=N",
        "sweeps=injection_layer",
    ):
        assert words in printed


@pytest.mark.parametrize("dry_run", ["dry_run=true", "--dry-run"])
def test_sweep_lists_its_cells_and_runs_nothing(call, tmp_path, dry_run):
    arguments = ("injection_layer=1,2", dry_run, "jobs=2", "trainer.accelerator=cpu", *SMALL)
    code, printed, _ = call(sweep.main, *arguments)
    assert code == 0
    assert printed.count("new       injection_layer=") == 2 and "2 cells" in printed
    assert "runs: 2, finished already: 0" in printed and "estimate of what is left" in printed
    assert "tokens   128 to train on, 384 to read" in printed
    assert "with 2 at a time: assumed 20 GFLOP/s" in printed
    assert not list(tmp_path.iterdir())


def test_sweep_counts_base_runs_apart_from_cells(call, tmp_path):
    file = tmp_path / "a.yaml"
    base = "base: [method=vanilla, data, model=tiny]"
    file.write_text(f"defaults: [override /data: markov]\n{base}\nvary: {{seed: '0,1'}}\n")
    code, printed, _ = call(sweep.main, f"sweeps={file}", "--dry-run", "injection_layer=1")
    assert code == 0 and "2 cells and 1 base run for them" in printed and "runs: 3, " in printed


def test_sweep_says_why_what_it_lists_cannot_start(call, tmp_path):
    code, printed, _ = call(sweep.main, "data=text", "data.path=/nowhere", "--dry-run",
                            "trainer.accelerator=cpu", f"data.cache={tmp_path}")  # fmt: skip
    assert code == 1
    assert "guessed  the documents of data=text" in printed
    assert "the sweep does not start here: " in printed and "/nowhere" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["injection_layer=20,22,23"], "injection_layer=23 but the model has 22 layers (0..21)"),
        (["injection_layer=range(1,1)"], "a sweep of 0 cells"),
        (["-m", "seed=1"], "unimem-sweep takes name=value arguments"),
    ],
)
def test_mistakes_in_a_sweep_are_told_before_it_starts(call, tmp_path, arguments, message):
    code, _, error = call(sweep.main, *arguments)
    assert message in f"{error}{code}" and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_help_names_dimensions_options_and_examples(call):
    code, printed, _ = call(train.main, "--help")
    assert not code
    for words in ("memory.management", "memory.injection: all, input", "unimem-sweep 'injection"):
        assert words in printed


def test_cfg_job_costs_no_torch(call):
    code = (
        "import sys; sys.argv = ['unimem-train', '--cfg', 'job'];"
        "from unimem.cli.train import main; main(); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "segment_length" in done.stdout


def test_readme_has_the_methods_as_they_are():
    readme = config_root() / "README.md"
    assert methods.method_table() in readme.read_text()


@pytest.mark.slow
def test_wheel_finds_its_configuration_from_any_folder(tmp_path):
    """Built, unpacked elsewhere, and run from a folder that is neither."""
    root = config_root()
    build = "from hatchling.builders.wheel import WheelBuilder as B; print(*B('.').build(directory="
    done = subprocess.run(
        [sys.executable, "-c", f"{build}{str(tmp_path)!r}))"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    wheel = Path(done.stdout.split()[-1])
    site, elsewhere = tmp_path / "site", tmp_path / "else where=3"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, site], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r});"
        "sys.argv = ['unimem-sweep', 'sweeps=tiny', 'dry_run=true'];"
        "import unimem.paths as p; from unimem.cli.sweep import main;"
        "print(p.config_root()); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=False
    )
    assert str(site / "unimem") in done.stdout and "2 cells" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-path", "/tmp"], "--config-path cannot be used"),
        (["--config-name", "eval"], "--config-name cannot be used"),
        (["--config-d", "x"], "write --config-dir FOLDER"),
        (["--experimental-rerun", "x.pickle"], "it would run code from a file"),
        (["--cfg", "job", "hydra.run.dir=../x"], "cannot be set here"),
        (["--cfg", "job", "+hydra.callbacks.a={_target_:os.system}"], "cannot be set here"),
        (["--cfg", "job", "topkk=1"], "topkk is not a setting"),
        (["--cfg", "job", "-m"], "cannot be used together"),
        (["--resolve"], "--resolve goes with --cfg job"),
        (["--shell-completion"], "takes install=bash"),
        (["--shell-completion", "query=bash"], "takes install=bash"),
        (["--help", "seed=${oc.env:A_KEY}"], "cannot be put into a setting"),
        (["-m", "seed=range(1000000000)"], "at most 10,000 are made"),
    ],
)
def test_flags_of_hydra_are_answered_in_a_line(call, arguments, message):
    code, out, err = call(train.main, *arguments)
    assert message in str(code) and not list(Path().iterdir())


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--cfg", "job", "--resolve"], ["--help"]])
@pytest.mark.parametrize("first", [True, False])
def test_flags_of_hydra_show_options_of_ones_own(call, tmp_path, monkeypatch, flags, first):
    (tmp_path / "own" / "data").mkdir(parents=True)
    (tmp_path / "own" / "data" / "four.yaml").write_text("defaults: [markov, _self_]\nlength: 44\n")
    monkeypatch.setenv(CONFIG_DIR, "")
    own = ["--config-dir", "own"]
    code, out, err = call(
        train.main, *own, *(["data=four", *flags] if first else [*flags, "data=four"])
    )
    assert not code and ("four" in out if "--help" in flags else "length: 44" in out)
