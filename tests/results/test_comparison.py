import json
import math
import shutil

import numpy as np
import pytest
from helpers.small_study import copy_of, small_study

from unimem.evaluation.statistics import several_seeds
from unimem.evaluation.tokens import TokenTable
from unimem.results.comparison import comparisons, holm, pareto_front
from unimem.results.select import Select
from unimem.results.study import Group, read_study
from unimem.runs.records import read_result


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return small_study(tmp_path_factory)


def losses(group: Group, column: str = "own") -> np.ndarray:
    cells = [group.finished[seed] for seed in sorted(group.finished)]
    return np.stack([TokenTable.load(cell.folder).columns[column] for cell in cells])


def shift(group: Group, by: float) -> None:
    """Write other losses to the folders of a group."""
    for cell in group.finished.values():
        table = TokenTable.load(cell.folder)
        table.columns["own"] = table.columns["own"] + np.float32(by)
        table.save(cell.folder)


def third_seed(output):
    """Add a seed to the first two settings, a copy of the first one's record."""
    study = json.loads((output / "small" / "study.json").read_text())
    for cell in study["cells"][:4:2]:
        folder = f"{cell['folder']}-third"
        shutil.copytree(output / cell["folder"], output / folder)
        result = read_result(output / folder) | {"seed": 2}
        (output / folder / "result.json").write_text(json.dumps(result))
        study["cells"].append(cell | {"folder": folder})
    (output / "small" / "study.json").write_text(json.dumps(study))
    return output


def test_holm_is_the_step_down_procedure():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_pareto_front_has_no_point_beaten_in_both():
    points = [(1.0, 5.0), (2.0, 5.0), (3.0, 2.0), (2.5, 4.0), (4.0, 3.0), (1.0, 6.0)]
    assert pareto_front(points) == [0, 3, 2]


def test_groups_pool_seeds_and_are_held_against_vanilla(output):
    groups = read_study(output, "small").groups()
    assert [g.label for g in groups] == ["vanilla", "injection_layer=0", "injection_layer=1"]
    (comparison,) = comparisons(groups)
    assert comparison.reference == 0 and [len(r.seeds) for r in comparison.readings] == [2, 2, 1]
    document = comparison.readings[0].table.document
    assert comparison.levels[0] == several_seeds(losses(groups[0]), document)
    paired = comparison.against_reference[2]
    difference = losses(groups[2]) - losses(groups[0])[:1].astype(np.float64)
    assert paired.seeds == 1 and paired.estimate == several_seeds(difference, document)


def test_nothing_is_claimed_from_two_seeds(output, tmp_path):
    copied = copy_of(output, tmp_path)
    groups = read_study(copied, "small").groups()
    shift(groups[1], -5.0)
    (comparison,) = comparisons(groups)
    assert comparison.best == 1 and comparison.ties == {0, 1, 2}
    assert comparison.against_reference[1].p < 1e-6 and not comparison.against_reference[1].claimed


def test_with_three_seeds_a_clear_difference_is_claimed_and_the_best_is_alone(output, tmp_path):
    copied = third_seed(copy_of(output, tmp_path))
    groups = read_study(copied, "small").groups()
    shift(groups[1], -5.0)
    (comparison,) = comparisons(groups)
    assert (
        comparison.best == 1
        and 0 not in comparison.ties
        and comparison.against_reference[1].claimed
    )
    assert 2 in comparison.ties  # it has too few seeds to be told from anything


def test_share_of_the_gap_is_0_and_1_at_the_bounds(output, tmp_path):
    copied = copy_of(output, tmp_path)
    groups = read_study(copied, "small").groups()
    for group, bound in zip(groups, ("bound_none", "bound_unlimited"), strict=False):
        for cell in group.finished.values():
            table = TokenTable.load(cell.folder)
            table.columns["own"] = table.columns[bound]
            table.save(cell.folder)
    (comparison,) = comparisons(groups)
    shares = [readings.gap_closed() for readings in comparison.readings[:2]]
    assert [share.mean for share in shares if share] == pytest.approx([0.0, 1.0])


def test_by_position_adds_up_to_the_mean(output):
    (comparison,) = comparisons(read_study(output, "small").groups())
    readings = comparison.readings[0]
    counts = np.histogram(readings.table.position, comparison.edges())[0]
    means = comparison.by_position(readings.own.mean(0))
    assert np.average(means, weights=counts) == pytest.approx(comparison.levels[0].mean, rel=1e-6)


def test_recorded_is_the_median_of_the_seeds(output):
    (comparison,) = comparisons(read_study(output, "small").groups())
    found = [read_result(cell.folder)["training_seconds"] for cell in comparison.readings[0].cells]
    assert comparison.readings[0].recorded("training_seconds") == pytest.approx(sum(found) / 2)
    assert comparison.readings[0].recorded("evaluation", "scores", "own", "bits_per_byte") is None


def test_groups_of_other_documents_are_not_compared(output, tmp_path):
    copied = copy_of(output, tmp_path)
    groups = read_study(copied, "small").groups()
    for cell in groups[1].finished.values():
        table = TokenTable.load(cell.folder).between(0, 20)
        table.save(cell.folder)
    first, second = comparisons(groups)
    assert [r.group.label for r in second.readings] == ["injection_layer=0"]
    assert len(first.readings) == 2 and second.against_reference == {}


def test_reference_can_be_chosen_and_a_wrong_one_is_told(output):
    groups = read_study(output, "small").groups()
    (comparison,) = comparisons(groups, Select.read("injection_layer=1"))
    assert comparison.reference == 2 and comparison.relative(2).mean == 0.0
    assert comparison.relative(0).mean == comparison.against_reference[0].estimate.mean
    assert not math.isnan(comparison.relative(0).mean)
    with pytest.raises(ValueError, match="reference: no setting is rmt; there are vanilla, inj"):
        comparisons(groups, Select.read({"method": "rmt"}))
