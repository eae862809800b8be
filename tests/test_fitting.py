"""A training that is broken off anywhere goes on and ends with the same bits."""

import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from scratch import IDS, image_of, tiny_run

from pipeline.checkpoints import build_network
from pipeline.errors import BadInput
from pipeline.fitting import STOPPED, fit, labels_round, warn_of_field_of_view
from pipeline.losses import bootstrapped_cross_entropy
from pipeline.tables import read_table


@pytest.fixture
def run(tmp_path):
    return tiny_run(tmp_path)


class Rounds:
    """Labels that differ by round; `event(epoch)` happens when a round starts."""

    def __init__(self, event=lambda epoch: None):
        self.asked = []
        self.event = event
        self.run, self.image_of = None, None

    def __call__(self, network, epoch):
        assert not network.training
        self.asked.append(epoch)
        self.event(epoch)

        def label_map_of(image_id):
            return np.full((40, 40), (epoch + int(image_id[-1])) % 9, np.uint8)

        return labels_round(
            self.run,
            network,
            image_of=self.image_of,
            label_map_of=label_map_of,
            measure=lambda: {"label_mean_area": float(epoch)},
        )


def train(folder, run, rounds, image_of=image_of):
    folder.mkdir(exist_ok=True)
    rounds.run, rounds.image_of = run, image_of
    fit(
        folder,
        run,
        build_network(run.network, 9, seed=run.seed),
        ids=IDS,
        categories=tuple("abcdefghi"),
        loss=partial(bootstrapped_cross_entropy, bootstrapping=run.bootstrapping),
        round_of=rounds,
        round_epochs=2,
        device=torch.device("cpu"),
    )
    return (folder / "model.pt").read_bytes(), (folder / "history.parquet").read_bytes()


def test_goes_on_after_a_failure_between_rounds(tmp_path, run):
    expected = train(tmp_path / "unbroken", run, Rounds())

    def fail_at_2(epoch):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", run, Rounds(fail_at_2))
    again = Rounds()
    assert train(tmp_path / "broken", run, again) == expected
    assert again.asked == [2]


def test_goes_on_after_being_told_to_stop_within_a_round(tmp_path, run):
    expected = train(tmp_path / "unbroken", run, Rounds())

    def image_that_stops(image_id):
        os.kill(os.getpid(), signal.SIGTERM)
        return image_of(image_id)

    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "broken", run, Rounds(), image_that_stops)
    assert stopped.value.code == STOPPED
    again = Rounds()
    assert train(tmp_path / "broken", run, again) == expected
    assert again.asked == [0, 2]


def test_between_rounds_there_is_nothing_to_keep_and_the_signal_is_the_systems(tmp_path, run):
    found = []
    train(tmp_path / "run", run, Rounds(lambda e: found.append(signal.getsignal(signal.SIGTERM))))
    assert found == [signal.getsignal(signal.SIGTERM)] * 2


def test_each_round_is_logged_once(tmp_path, run):
    train(tmp_path / "run", run, Rounds())
    history = read_table(tmp_path / "run" / "history.parquet", "history")
    areas = history[history["name"] == "label_mean_area"]
    assert areas["epoch"].tolist() == [0, 2]
    assert (history["name"] == "loss").sum() == 4 * (len(IDS) // run.batch)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, run):
    train(tmp_path / "run", run, Rounds())
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(BadInput, match=r"checkpoint\.pt"):
        train(tmp_path / "run", run, Rounds())


def test_a_crop_smaller_than_the_field_of_view_is_warned_of(run, capsys):
    warn_of_field_of_view(run)
    assert "the classifier sees 40 pixels, the crop has 32" in capsys.readouterr().err


def test_a_finished_training_gives_the_same_file_again(tmp_path, run):
    assert train(tmp_path / "run", run, Rounds()) == train(tmp_path / "run", run, Rounds())
