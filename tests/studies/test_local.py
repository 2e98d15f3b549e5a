import os

from studies.conftest import TINY

from unimem.studies.run.cell_state import take_lock
from unimem.studies.run.launchers.local import LocalLauncher, num_cores, visible_gpus
from unimem.studies.run.process import train_command
from unimem.studies.study import expand


def launcher(*arguments: str, jobs: int | None = None) -> tuple[LocalLauncher, tuple]:
    study = expand([*TINY, *arguments, *([f"jobs={jobs}"] if jobs else [])])
    return LocalLauncher(study.options, study.cells), study.cells


def test_slots_share_the_cores_unless_threads_are_set(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    free, (cell,) = launcher("trainer.threads=null", jobs=2)
    assert free.environment(cell, 0) == {"OMP_NUM_THREADS": str(max(1, num_cores() // 2))}
    fixed, (cell,) = launcher("trainer.threads=3", jobs=2)
    assert fixed.environment(cell, 0) == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert free.environment(cell, 0) == {}


def test_as_many_cells_run_as_the_cores_suffice_for_if_they_say_their_threads():
    assert launcher("trainer.threads=1")[0].slots == num_cores()
    assert launcher("trainer.threads=1", jobs=3)[0].slots == 3
    assert launcher(f"trainer.threads=1,{num_cores() + 1}")[0].slots == 1
    assert launcher("trainer.threads=null")[0].slots == 1


def test_slots_have_gpus_of_their_own(monkeypatch):
    four = ["0", "1", "2", "3"]
    monkeypatch.setattr("unimem.studies.run.launchers.local.visible_gpus", lambda: four)
    one, (cell,) = launcher("trainer.accelerator=gpu")
    assert one.slots == 4
    assert [one.environment(cell, s)["CUDA_VISIBLE_DEVICES"] for s in range(5)] == [*four, "0"]
    two, (cell,) = launcher("trainer.accelerator=gpu", "trainer.devices=2")
    assert two.slots == 2
    assert [two.environment(cell, s)["CUDA_VISIBLE_DEVICES"] for s in (0, 1)] == ["0,1", "2,3"]
    everything, (cell,) = launcher("trainer.accelerator=gpu", "trainer.devices=auto")
    assert everything.slots == 1
    assert everything.environment(cell, 0)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


def test_without_gpus_slots_are_counted_by_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    assert launcher("trainer.accelerator=auto")[0].slots == num_cores()


def test_a_lock_is_held_once_and_as_long_as_somebody_has_its_file(tmp_path):
    (cell,) = expand([*TINY, f"output={tmp_path}"]).cells
    lock = take_lock(cell)
    assert lock is not None and take_lock(cell) is None
    inherited = os.dup(lock.fileno())
    lock.close()
    assert take_lock(cell) is None
    os.close(inherited)
    again = take_lock(cell)
    assert again is not None
    again.close()


def test_group_and_tags_go_to_the_run_beside_its_own():
    _, (cell,) = launcher("logger.tags=[mine]")
    assert train_command(cell, "sweep", resume=False)[-1] == "logger.group=sweep"
    tagged = train_command(cell, "search", False, ("search",))
    assert tagged[-2:] == ["logger.group=search", 'logger.tags=["mine", "search"]']
