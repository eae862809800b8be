"""Work folders: found again after a kill, refused when something changed, never shared."""

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from pipeline.code_digest import code_digest
from pipeline.errors import BadInput
from pipeline.work import content_digest, open_work

PARAMS = "semantic:\n  net: {lr: 0.1, epochs: 3}\n  other: {lr: 5.0}\n"


@pytest.fixture
def project(tmp_path):
    stages = tmp_path / "pipeline" / "stages"
    stages.mkdir(parents=True)
    (tmp_path / "pipeline" / "__init__.py").touch()
    (stages / "__init__.py").touch()
    (stages / "train.py").write_text('"""Doc."""\nfrom pipeline import losses\nRATE = 1\n')
    (tmp_path / "pipeline" / "losses.py").write_text("def loss():\n    return 2  # two\n")
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "input.txt").write_text("in")
    return tmp_path


def work_of(project):
    return open_work(
        project,
        stage="train",
        key="net",
        sections=["semantic"],
        inputs=[project / "data" / "input.txt"],
    )


def test_publishes_files_and_folders_whole(project):
    with work_of(project) as work:
        (work.folder / "model.pt").write_text("weights")
        (work.folder / "maps").mkdir()
        (work.folder / "maps" / "a.png").write_text("a")
        place = project / "data" / "models" / "net.pt"
        work.publish({work.folder / "model.pt": place, work.folder / "maps": project / "out"})
    assert place.read_text() == "weights"
    assert (project / "out" / "a.png").read_text() == "a"
    assert not list(place.parent.glob(".*"))


def test_a_second_opening_finds_what_the_first_left(project):
    with work_of(project) as work:
        (work.folder / "checkpoint").write_text("step 5")
    with work_of(project) as work:
        assert (work.folder / "checkpoint").read_text() == "step 5"


def test_another_learning_rate_starts_anew(project):
    with work_of(project) as work:
        first = work.folder
    (project / "params.yaml").write_text(PARAMS.replace("0.1", "0.2"))
    with work_of(project) as work:
        assert work.folder != first


def test_another_run_being_edited_changes_nothing(project):
    with work_of(project) as work:
        (project / "params.yaml").write_text(PARAMS.replace("5.0", "6.0"))
        work.publish({})


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("params.yaml", "lr: 0.1", "lr: 0.9", "params.yaml semantic.net.lr"),
        ("params.yaml", ", epochs: 3", "", "params.yaml semantic.net.epochs"),
        ("pipeline/losses.py", "return 2", "return 3", "code pipeline/losses.py"),
        ("data/input.txt", "in", "out", "input data/input.txt"),
    ],
)
def test_publishes_nothing_when_something_changed_meanwhile(project, file, old, new, named):
    path = project / file
    with pytest.raises(BadInput, match=named), work_of(project) as work:
        (work.folder / "model.pt").write_text("weights")
        path.write_text(path.read_text().replace(old, new))
        work.publish({work.folder / "model.pt": project / "model.pt"})
    assert not (project / "model.pt").exists()
    assert (work.folder / "model.pt").exists()


def test_a_reworded_docstring_or_comment_changes_no_digest(project):
    before = code_digest(project, "train")
    train = project / "pipeline" / "stages" / "train.py"
    train.write_text(train.read_text().replace("Doc.", "Reworded."))
    losses = project / "pipeline" / "losses.py"
    losses.write_text(losses.read_text().replace("# two", "#  zwei"))
    assert code_digest(project, "train") == before
    assert set(before) == {
        "pipeline/__init__.py",
        "pipeline/losses.py",
        "pipeline/stages/__init__.py",
        "pipeline/stages/train.py",
    }


def hold(project, held):
    with work_of(project):
        held.set()
        time.sleep(60)


def test_two_processes_never_work_on_one_run(project):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=hold, args=(project, held))
    holder.start()
    try:
        assert held.wait(30)
        with pytest.raises(BadInput, match=f"process {holder.pid} is at work on train net"):
            with work_of(project):
                raise AssertionError("both hold it")
    finally:
        holder.kill()
        holder.join()
    with work_of(project):  # a killed holder leaves no lock behind
        pass


def test_finished_work_of_older_settings_is_removed_when_newer_is_published(project):
    with work_of(project) as old:
        old.publish({})
    (project / "params.yaml").write_text(PARAMS.replace("0.1", "0.2"))
    with work_of(project) as unfinished:
        pass
    (project / "params.yaml").write_text(PARAMS.replace("0.1", "0.3"))
    with work_of(project) as new:
        new.publish({})
    assert not old.folder.exists()
    assert unfinished.folder.exists()
    assert new.folder.exists()


def test_the_digest_of_a_folder_sees_names_and_contents(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("1")
    first = content_digest(folder)
    (folder / "a").rename(folder / "b")
    renamed = content_digest(folder)
    (folder / "b").write_text("22")
    assert len({first, renamed, content_digest(folder)}) == 3


def test_a_missing_input_is_named(project):
    with pytest.raises(BadInput, match=r"nowhere.txt: not there"):
        with open_work(
            project, stage="train", key="net", sections=[], inputs=[project / "nowhere.txt"]
        ):
            raise AssertionError("opened")


def test_the_state_is_readable_beside_the_work(project):
    with work_of(project) as work:
        state = json.loads((work.folder / "depends_on.json").read_text())
    assert state["params.yaml semantic.net.lr"] == "0.1"


def test_code_edited_before_a_stage_has_begun_is_refused_by_name(project):
    listed = project / "data" / "code" / "train.txt"
    listed.parent.mkdir()
    lines = [f"{digest}  {name}\n" for name, digest in code_digest(project, "train").items()]
    listed.write_text("".join(lines))
    with work_of(project):
        pass
    losses = project / "pipeline" / "losses.py"
    losses.write_text(losses.read_text().replace("return 2", "return 3"))
    with pytest.raises(BadInput, match=r"this code changed: pipeline/losses\.py"):
        with work_of(project):
            raise AssertionError("opened")


def test_the_lists_that_a_stage_reads_are_part_of_its_code():
    digests = code_digest(Path(__file__).resolve().parents[1], "prepare")
    assert "pipeline/datasets/published_lists/sbd_instance_val.txt" in digests
