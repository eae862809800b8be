"""What a training tells: lines in a log, nothing from a process that is hidden."""

from pipeline import progress
from pipeline.progress import Progress


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Progress(20, 100, hidden=False) as shown:
        for done in range(21, 31):  # ten steps of 6 seconds: the lines at 30 and 60 seconds
            clock[0] += 6.0
            shown.at(done, 0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 25 of 100, loss 0.500, about 8 min left",  # 75 steps of 6 seconds: 7.5 minutes
        "step 30 of 100, loss 0.500, about 7 min left",
    ]


def test_a_hidden_process_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with Progress(0, 2, hidden=True) as shown:
        shown.say("begins")
        shown.at(1, 0.5)
    assert not capsys.readouterr().err
