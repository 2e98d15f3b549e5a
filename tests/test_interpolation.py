"""No variable of the environment that may be a secret gets into settings or messages."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from unimem.config import ConfigError, compose, compose_node
from unimem.interpolation import guarded
from unimem.paths import CONFIG_DIR

CANARY = "canary-72"


@pytest.mark.parametrize("name", ["HOME", "USER", "SLURM_JOB_ID", "TMPDIR"])
def test_variables_without_secrets_are_read(name, monkeypatch):
    monkeypatch.setenv(name, "here")
    assert compose(f"output=${{oc.env:{name}}}/x").output == "here/x"


@pytest.mark.parametrize(
    "line",
    [
        "logger.group=${oc.env:NAME}",
        "logger.group=${oc.env:NAME,none}",
        "logger.group='a ${oc.env:NAME} b'",
        "logger.tags=[a,'${oc.env:NAME}']",
        "logger.group='${oc.decode:${oc.env:NAME}}'",
        "logger.group='${oc.env:${logger.project}}'",
        "logger.group='${oc.${logger.project}:NAME}'",
    ],
)
@pytest.mark.parametrize("name", ["WANDB_API_KEY", "SLURM_JWT", "HOME_TOKEN", "ANYTHING"])
def test_other_variables_are_refused_by_name(line, name, monkeypatch):
    monkeypatch.setenv(name, CANARY)
    project = "env" if "oc.${" in line else name
    with pytest.raises(ConfigError, match=f"oc.env:{name}.: this variable cannot be put") as error:
        compose(f"logger.project={project}", line.replace("NAME", name))
    assert CANARY not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "length: ${oc.env:HF_TOKEN}",
        "defaults: [markov, _self_]\nkind: ${oc.env:HF_TOKEN}",
        "defaults: ['${oc.env:HF_TOKEN}']",
    ],
)
def test_nor_does_a_folder_of_options_read_them(text, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "four.yaml").write_text(text)
    monkeypatch.setenv(CONFIG_DIR, str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", CANARY)
    with pytest.raises(ConfigError, match="HF_TOKEN") as error:
        compose_node("train", ["data=four"])
    assert CANARY not in str(error.value)


def test_settings_of_other_programs_read_what_they_like(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    node = OmegaConf.create({"a": "${oc.env:HF_TOKEN}"})
    assert node.a == CANARY
    with guarded(), pytest.raises(Exception, match="cannot be put into a setting"):
        _ = node.a


@pytest.mark.parametrize(
    "line",
    [
        f"logger.api_key={CANARY}",
        f"+wandb_key={CANARY}",
        f"++data.token={CANARY}",
        f"+a={{hub_token: {CANARY}}}",
        f"seed=1 password={CANARY}",
    ],
)
@pytest.mark.parametrize("flag", [[], ["--cfg", "job"]])
def test_a_secret_given_as_a_setting_is_neither_shown_nor_written(line, flag, tmp_path):
    code = f"import sys; sys.argv = ['unimem-train', {line!r}, *{flag!r}]\n"
    code += "from unimem.cli.train import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "is not a setting" in done.stderr
    assert CANARY not in done.stdout + done.stderr and not list(tmp_path.iterdir())
