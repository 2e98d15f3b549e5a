"""The studies of `sweeps/`: each composes at every scale, and says what it claims."""

import pytest

from unimem.config import compose
from unimem.overrides import text_of
from unimem.paths import config_root, group_files
from unimem.results.claims.statements import read_checks
from unimem.studies.cells import SweepOptions
from unimem.studies.grid import values
from unimem.studies.study import MODE
from unimem.studies.study_file import BaseStudy, read_study_file

NAMES = sorted(path.stem for path in (config_root() / "sweeps").glob("*.yaml"))
PROFILES = ("cpu", "tinyllama", "llama2_7b")
PUBLISHED = [name for name in NAMES if name != "tiny"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_study_says_what_it_claims_at_three_scales(name):
    for profile in PROFILES:
        file = read_study_file(name, profile)
        assert file.profiles == PROFILES
        assert len(file.fields["claim"]) > 40
        assert read_checks(file.fields["report"]["checks"])


@pytest.mark.parametrize("profile", PROFILES)
def test_the_study_of_all_methods_has_every_method(profile):
    file = read_study_file("methods", profile)
    found = {one.value() for grid in file.grids for one in values(grid["method"])}
    # A memory without bound holds no whole document of the larger scales.
    names = {path.stem for path in group_files("method")} - {"custom"}
    lacking = sorted(names - found - (set() if profile == "cpu" else {"full_context"}))
    assert not lacking, f"add {', '.join(lacking)} to the profile {profile} of sweeps/methods.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_grid_composes(name, profile):
    file = read_study_file(name, profile)
    fixed = file.fixed.without((*SweepOptions.names(), MODE))
    if isinstance(file.base, BaseStudy):
        return  # its cells are those of a study that is read here too
    for grid in file.grids:
        lines = [text_of(values(override)[0]) for override in (fixed | grid).values()]
        config = compose(f"profile={profile}", *lines)
        config.memory.plan(config.num_layers())
