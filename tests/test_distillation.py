"""Models that learn from trained ones: `train.py --teacher`."""

import shutil

import pytest
import torch

import checkpoint
import learning
import train
from distillation import Teachers

CPU = torch.device("cpu")


def taught(trained, folder, **changed):
    """Flags of a run that goes on from the trained model, in stage 2, with it as a teacher."""
    best = trained.checkpoints / "best.pt"
    stages = {"init": best, "epochs": 0, "finetune_epochs": 1, "teacher": best}
    return trained.flags(folder, **{**stages, **changed})


def weights_of(folder):
    model = checkpoint.load(folder / "checkpoints" / "last.pt", CPU).model
    return torch.cat([weight.flatten() for weight in model.parameters()])


@pytest.mark.parametrize("chunk_logits", [learning.CHUNK_LOGITS, 10])  # at once, or two words
def test_the_target_is_a_part_peoples_and_a_part_the_teachers(monkeypatch, chunk_logits):
    monkeypatch.setattr(learning, "CHUNK_LOGITS", chunk_logits)
    torch.manual_seed(0)
    logits, words = torch.randn(7, 5, requires_grad=True), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    soft = torch.randn(7, 5).softmax(dim=-1)
    smoothed = 0.9 * torch.eye(5)[words] + 0.1 / 5
    expected = torch.nn.functional.cross_entropy(logits, 0.7 * smoothed + 0.3 * soft)
    loss, nats = learning.word_losses(logits, words, 0.1, None, soft, 0.3)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(3 * loss, logits), torch.autograd.grad(3 * expected, logits)
    )
    alone = torch.nn.functional.cross_entropy(logits, words, reduction="sum")
    torch.testing.assert_close(nats, alone.detach())  # what is logged compares with other runs


def test_a_teacher_is_asked_without_dropout_on_the_crops_that_are_learned(
    trained, tmp_path, monkeypatch
):
    seen, augmented = [], train.augmented
    ask = Teachers.__call__

    def asked(self, batch):
        seen.append(("asked", batch.pixels.clone()))
        assert not any(model.training for model in self.models)
        soft = ask(self, batch)
        assert torch.equal(soft, ask(self, batch))  # one teacher: nothing is drawn
        assert soft.shape[0] == len(batch.positions)
        torch.testing.assert_close(soft.sum(dim=-1), torch.ones(len(soft)))
        return soft

    def cropped(*args):
        seen.append(("cropped", augmented(*args)))
        return seen[-1][1]

    monkeypatch.setattr(Teachers, "__call__", asked)
    monkeypatch.setattr(train, "augmented", cropped)
    assert train.main(taught(trained, tmp_path)) == 0
    assert [who for who, _ in seen] == ["cropped", "asked"] * (len(seen) // 2)
    assert all(torch.equal(seen[i][1], seen[i + 1][1]) for i in range(0, len(seen), 2))


def test_each_of_several_teachers_has_its_turn(trained):
    models = [checkpoint.load(trained.checkpoints / name, CPU).model for name in ("best.pt",) * 2]
    with torch.no_grad():
        models[1].output.bias[5] += 50.0
    teachers, batch = Teachers(models), learning_batch()
    said = set()
    for step in range(20):
        learning.seed_step(CPU, seed=0, step=step)
        said.add(bool(teachers(batch)[0].argmax() == 5))
    assert said == {True, False}


def learning_batch():
    from loader import Batch

    return Batch(
        tokens=torch.tensor([[1, 6, 7, 2]]),
        caption_to_image=torch.tensor([0]),
        positions=torch.tensor([1, 2, 3]),
        image_index=torch.tensor([0]),
        host_image_index=torch.tensor([0]).numpy(),
        pixels=torch.zeros((1, 3, 32, 32), dtype=torch.uint8),
    )


def test_what_is_learned_depends_on_the_teacher_by_its_weight(trained, tmp_path):
    """With no weight the run is that without a teacher."""
    runs = {
        "without": {"teacher": None},
        "no weight": {"teacher_weight": 0},
        "half": {},
    }
    for name, changed in runs.items():
        flags = taught(trained, tmp_path / name, **changed)
        if name == "without":
            at = flags.index("--teacher")
            del flags[at : at + 2]
        assert train.main(flags) == 0
    without, no_weight, half = (weights_of(tmp_path / name) for name in runs)
    torch.testing.assert_close(no_weight, without, atol=1e-5, rtol=0)
    assert (half - without).abs().max() > 1e-4


def test_a_run_with_a_teacher_is_resumed(trained, tmp_path, capsys):
    teacher = tmp_path / "teacher.pt"
    shutil.copy(trained.checkpoints / "best.pt", teacher)
    assert train.main(taught(trained, tmp_path, teacher=teacher)) == 0
    where = ["--resume", "--checkpoints", str(tmp_path / "checkpoints")]
    teacher.rename(tmp_path / "moved.pt")
    assert train.main([*where, "--finetune-epochs", "2"]) == 2
    assert f"no checkpoint {teacher}" in capsys.readouterr().err
    moved = ["--teacher", str(tmp_path / "moved.pt")]
    assert train.main([*where, "--finetune-epochs", "2", *moved]) == 0
    last = checkpoint.load(tmp_path / "checkpoints" / "last.pt", CPU)
    assert last.settings["teacher"] == moved[1:]
    assert train.main([*where, "--scst-epochs", "1"]) == 0
    (tmp_path / "moved.pt").unlink()  # stage 3 has nothing to learn from it
    assert train.main([*where, "--scst-epochs", "2"]) == 0


def other(trained, folder, edit):
    content = torch.load(trained.checkpoints / "best.pt", weights_only=True)
    edit(content)
    torch.save(content, folder / "other.pt")
    return folder / "other.pt"


def _swap_two_words(content):
    words = content["vocabulary"]["words"]
    words[5], words[6] = words[6], words[5]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_swap_two_words, "knows other words"),
        (lambda content: content["vocabulary"].update(language="de"), "knows other words"),
        (lambda content: content["settings"].update(image_size=48), "of 48 pixels, not 32"),
        (lambda content: content.pop("decoder"), "is damaged, or no checkpoint of this project"),
    ],
)
def test_a_model_that_cannot_teach_is_refused(trained, tmp_path, capsys, edit, message):
    flags = taught(trained, tmp_path, teacher=other(trained, tmp_path, edit))
    assert train.main(flags) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "other.pt" in err
    assert not list((tmp_path / "checkpoints").glob("*.pt"))


def test_what_is_no_checkpoint_or_the_runs_own_is_refused(trained, tmp_path, capsys):
    own = tmp_path / "checkpoints" / "best.pt"
    own.parent.mkdir()
    shutil.copy(trained.checkpoints / "best.pt", own)
    (tmp_path / "text.pt").write_text("no model")
    for changed, message in (
        ({"teacher": tmp_path / "none.pt"}, "none.pt: train one"),
        ({"teacher": tmp_path / "text.pt"}, "text.pt is "),
        ({"teacher": own}, "is where this run puts its own models"),
        ({"finetune_epochs": 0, "epochs": 1}, "--teacher teaches in stage 2"),
        ({"teacher_weight": 1.5}, "--teacher-weight must be at most 1, got 1.5"),
    ):
        capsys.readouterr()
        with_status = train.main if "teacher_weight" not in changed else _main_or_exit
        assert with_status(taught(trained, tmp_path, **changed)) == 2
        assert message in capsys.readouterr().err
    assert own.read_bytes() == (trained.checkpoints / "best.pt").read_bytes()


def _main_or_exit(flags):
    with pytest.raises(SystemExit) as left:
        train.main(flags)
    return left.value.code
