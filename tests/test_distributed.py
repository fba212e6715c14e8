"""Real processes under torchrun, on a CPU: what N train is what one trains."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

import checkpoint
import demo
import distributed
import learning
from cli import UserError
from corpus import load_corpus
from draws import Share, drawn_like
from loader import Flickr30k, Vocabulary, batches, plan_batches
from model import ImageCaptioningModel
from resnet import ResNet

ROOT = Path(distributed.__file__).parent
CPU = torch.device("cpu")
# In place of train.py: writes down the loss of every step, and does something at one of them.
DRIVER = """
import json, os, signal, sys, time
sys.path.insert(0, {root!r})
import torch
import run, train
check_finite = run.Run.check_finite
rank, restart = int(os.environ.get("RANK", 0)), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
def noted(self, loss, state, optimizer):
    if rank == 0:
        with open({losses!r}, "a") as file:
            file.write(json.dumps([state.stage, state.step, loss]) + "\\n")
    {what}
    return check_finite(self, loss, state, optimizer)
run.Run.check_finite = noted
sys.argv = [part.replace("$RANK", str(rank)) for part in sys.argv]
{before}
sys.exit(train.main())
"""


@dataclass(frozen=True)
class Done:
    folder: Path
    status: int
    stderr: str

    def losses(self):
        lines = (self.folder / "losses").read_text().splitlines()
        found = {}
        for _, step, loss in map(json.loads, lines):
            found.setdefault(step, loss)  # at some steps the norm is looked at too
        return np.array([found[step] for step in sorted(found)])

    def last(self):
        return checkpoint.load(self.folder / "checkpoints" / "last.pt", CPU)

    def steps(self):
        return self.last().training["state"]["step"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Scenes of 32 pixels, and a ResNet's random weights to start from."""
    folder = tmp_path_factory.mktemp("data")
    demo.draw(folder, n_scenes=60, size=32)
    torch.manual_seed(0)
    torch.save(ResNet("resnet18").state_dict(), folder / "weights.pth")
    return folder


def flags_of(source, folder, **changed):
    flags = {
        **{"data": source, "captions": "results.csv", "encoder_weights": source / "weights.pth"},
        **{"checkpoints": folder / "checkpoints", "runs": folder / "runs"},
        **{"cache": source / "cache", "encoder": "resnet18", "image_size": 32, "device": "cpu"},
        **{"embedding_size": 16, "hidden_size": 32, "batch_size": 20, "epochs": 1, **changed},
    }
    return [part for n, v in flags.items() for part in (f"--{n.replace('_', '-')}", str(v))]


def start(folder, flags, *, n, what="", before="", torchrun=(), **env):
    """Start a training in so many processes; ``what`` is done in each after every step.

    ``before`` is done at the beginning. "$RANK" in a flag is the process's number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    driver = folder / "driver.py"
    driver.write_text(
        DRIVER.format(root=str(ROOT), losses=str(folder / "losses"), what=what, before=before)
    )
    command = [sys.executable, driver, *flags]
    if n > 1 or torchrun:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
        command = [sys.executable, *launch, *torchrun, driver, *flags]
    env = {**os.environ, **env}
    env.pop("OMP_NUM_THREADS", None)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            cwd=folder, env=env)  # fmt: skip


def do(folder, flags, **options):
    process = start(folder, flags, **options)
    _, stderr = process.communicate(timeout=300)
    return Done(folder, process.returncode, stderr)


def resume(folder, *flags, **options):
    return do(folder, ["--resume", "--checkpoints", str(folder / "checkpoints"), *flags], **options)


def difference(one, other):
    """The largest of a tensor's elements relative to its largest element, over all weights."""
    pairs = zip(one.items(), other.values(), strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-9)) for (_, a), b in pairs)


def assert_same_training(done, other, *, weights=1e-5):
    assert (done.status, other.status) == (0, 0), done.stderr[-2000:] + other.stderr[-2000:]
    np.testing.assert_allclose(done.losses(), other.losses(), rtol=1e-5)
    ours, theirs = done.last(), other.last()
    assert ours.scores.keys() == theirs.scores.keys()
    for name, score in theirs.scores.items():
        assert ours.scores[name] == pytest.approx(score, rel=1e-5), name
    found = difference(theirs.model.state_dict(), ours.model.state_dict())
    print(f"largest relative difference of weights: {found:.1e}")
    assert found < weights


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """One process through stage 1."""
    folder = tmp_path_factory.mktemp("alone")
    return do(folder, flags_of(data, folder), n=1)


@pytest.mark.parametrize("n", [2, 3])
def test_several_processes_train_what_one_trains(data, tmp_path, alone, n):
    together = do(tmp_path, flags_of(data, tmp_path), n=n)
    assert_same_training(together, alone)
    assert together.stderr.count("xe 1/1  loss") == 1  # the others are silent


LATER = {
    "epochs": 0,
    "batch_size": 50,
    "finetune_learning_rate": 1e-4,
    "encoder_learning_rate": 1e-5,
}


@pytest.mark.parametrize("stage", ["finetune", "scst"])
def test_later_stages_too(data, tmp_path, alone, stage):
    """Short, and at a small rate: rounding grows as it does with another number of threads."""
    changed = {**LATER, f"{stage}_epochs": 1, "init": alone.folder / "checkpoints" / "best.pt"}
    one, *others = (
        do(tmp_path / str(n), flags_of(data, tmp_path / str(n), **changed), n=n) for n in (1, 2, 3)
    )
    for other in others:
        assert_same_training(other, one)


@pytest.mark.parametrize("stage", ["finetune", "scst"])
def test_a_process_without_a_part_of_a_batch_takes_part_in_the_sum(data, tmp_path, alone, stage):
    """Batches of a single image leave the others nothing."""
    rows = (data / "results.csv").read_text().splitlines()
    (data / "few.csv").write_text("\n".join(rows[: 1 + 5 * 8]))
    best = alone.folder / "checkpoints" / "best.pt"
    changed = {**LATER, f"{stage}_epochs": 1, "init": best, "batch_size": 5, "captions": "few.csv"}
    one, two = (
        do(tmp_path / str(n), flags_of(data, tmp_path / str(n), **changed), n=n) for n in (1, 2)
    )
    assert_same_training(two, one)


def stop_after(step, signal_name="SIGTERM", rank=1):
    return (f"os.kill(os.getpid(), signal.{signal_name}) "
            f"if (rank, restart, state.step) == ({rank}, 0, {step}) else None")  # fmt: skip


def test_resume_with_another_number_of_processes(data, tmp_path, alone):
    """A signal to any process ends all after the same step: 2, then 3, then 1."""
    first = do(tmp_path, flags_of(data, tmp_path), n=2, what=stop_after(3))
    assert first.status != 0
    assert "nothing is lost" in first.stderr
    assert first.steps() == 4  # which told the others
    second = resume(tmp_path, n=3, what=stop_after(7, rank=2))
    assert second.steps() == 8
    assert_same_training(resume(tmp_path, n=1), alone)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_restarted_and_resumes(data, tmp_path, alone, rank):
    """The second also when it is the one that writes: it begins again where nothing was saved."""
    what = stop_after(5, "SIGKILL", rank)
    flags = flags_of(data, tmp_path)
    done = do(tmp_path, flags, n=2, what=what, torchrun=["--max-restarts", "3"])
    assert_same_training(done, alone)
    assert done.stderr.count("resumed     in xe, epoch 1, after step ") == (rank == 1)


def test_a_restart_does_not_resume_an_earlier_run(data, tmp_path, alone):
    """What was in the folder had been finished by another call."""
    flags = flags_of(data, tmp_path, epochs=2)
    assert do(tmp_path, flags, n=2, torchrun=["--max-restarts", "1"]).status == 0
    (tmp_path / "losses").unlink()
    what = stop_after(2, "SIGKILL", 0)
    flags = flags_of(data, tmp_path)
    done = do(tmp_path, flags, n=2, what=what, torchrun=["--max-restarts", "1"])
    assert_same_training(done, alone)
    assert "resumed" not in done.stderr


def test_a_process_that_does_not_answer_ends_in_a_message(data, tmp_path):
    flags = flags_of(data, tmp_path)
    process = start(
        tmp_path, flags, n=2, what=stop_after(2, "SIGSTOP"), DISTRIBUTED_TIMEOUT="5",
        torchrun=["--log-dir", str(tmp_path / "logs")],
    )  # fmt: skip
    _, stderr = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "error: process 0 on" in stderr
    assert "did not answer for 5 seconds" in stderr
    assert "nothing is lost" in stderr


ELSEWHERE = "os.chdir(str(rank))"  # the same flags mean other files
OTHER_CODE = "import agreement\nif rank: agreement.__file__ = '/elsewhere/agreement.py'"


@pytest.mark.parametrize(
    ("changed", "before", "message"),
    [
        ({"demo": None, "encoder_weights": "none"}, "", "2 processes cannot train an encoder from"),
        ({"data": "data$RANK"}, "", "process 1 on {host}: "),
        ({"batch_size": "2$RANK"}, "", "the processes differ in --batch-size: 21 in number 1 on"),
        ({"data": "data"}, ELSEWHERE, "the processes differ in data: "),
        ({"encoder_weights": "weights.pth"}, ELSEWHERE, "the processes differ in weights: "),
        ({}, OTHER_CODE, "the processes differ in project"),
    ],
)  # fmt: skip
def test_processes_that_do_not_fit_together_are_told_so_once(
    data, tmp_path, changed, before, message
):
    """`data1` is not there: as on a machine that lacks the folder."""
    copied = {"ignore": shutil.ignore_patterns("cache")}
    shutil.copytree(data, tmp_path / "data0", **copied)
    for rank in "01":
        shutil.copytree(data, tmp_path / rank / "data", **copied)
        torch.save(ResNet("resnet18").state_dict(), tmp_path / rank / "weights.pth")
    rows = (data / "results.csv").read_text()
    (tmp_path / "1" / "data" / "results.csv").write_text(rows.replace(" big ", " huge "))
    flags = [part for part in flags_of(data, tmp_path, **changed) if part != "None"]
    done = do(tmp_path, flags, n=2, before=before)
    assert done.status != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message.format(host=socket.gethostname()) in errors[0]
    assert not list(tmp_path.rglob("*.pt"))


def drawn(data, n_images=7):
    """A data set of features; each image has another number of captions."""
    corpus = load_corpus(data)
    examples = corpus.splits["train"][:n_images]
    for i, example in enumerate(examples):
        del example.captions[1 + i % 4 :]
    texts = [text for example in examples for text in example.captions]
    vocabulary = Vocabulary.build(texts, freq_threshold=1)
    torch.manual_seed(1)
    model = ImageCaptioningModel(
        len(vocabulary), encoder="resnet18", embedding_size=8, hidden_size=8
    )
    features = torch.randn(n_images, model.feature_size)
    return model.train(), Flickr30k(examples, vocabulary, CPU, features=features)


def gradients_of(model, data, plan, monkeypatch, *, rank, size):
    """Of one process's part of a batch, without the others."""
    monkeypatch.setattr(distributed, "rank", rank)
    monkeypatch.setattr(distributed, "size", size)
    (batch,) = batches(data, plan)
    learning.seed_step(CPU, 0, 5)
    model.zero_grad()
    loss = learning.cross_entropy(model, batch.features, batch, label_smoothing=0.1)
    loss.mean.backward()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return loss, [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]


@pytest.mark.parametrize("size", [2, 3, 9])  # of seven images: two are left without one
def test_parts_are_divided_by_the_words_of_the_whole_batch(data, monkeypatch, size):
    """The mean of means weighs the words of a part with few more (TorchTitan PR 2206)."""
    model, drawn_data = drawn(data)
    plan = plan_batches(drawn_data, batch_size=100, seed=0, whole_images=True)
    whole, wanted = gradients_of(model, drawn_data, plan, monkeypatch, rank=0, size=1)
    parts = [
        gradients_of(model, drawn_data, plan, monkeypatch, rank=rank, size=size)
        for rank in range(size)
    ]
    assert {loss.count for loss, _ in parts} == {whole.count}
    torch.testing.assert_close(sum(loss.mean for loss, _ in parts), whole.mean)
    torch.testing.assert_close(sum(loss.total for loss, _ in parts), whole.total)
    for grad, *grads in zip(wanted, *(grads for _, grads in parts), strict=True):
        torch.testing.assert_close(sum(grads), grad, rtol=1e-4, atol=1e-7)


def test_gradients_are_views_of_one_buffer(data, monkeypatch):
    monkeypatch.setattr(distributed, "size", 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda flat: flat.mul_(2))
    model, _ = drawn(data)
    model.unfreeze_encoder(2)  # convolutions in another memory format: AdamW reads memory in order
    gradients = distributed.Gradients(model.parameters())
    loss = sum(weight.sum() for weight in gradients.weights)
    for _ in range(2):  # the second as the first
        gradients.clear()
        loss.backward(retain_graph=True)
        mean, total = gradients.add_up(loss, torch.tensor(3.0))
        assert float(total) == 6
        torch.testing.assert_close(mean, 2 * loss.detach())
        for weight in gradients.weights:
            assert weight.grad.stride() == weight.stride()
            assert bool((weight.grad == 2).all())
    norm = clip_grad_norm_(model.parameters(), 1.0)
    assert float(norm) == pytest.approx(2 * sum(w.numel() for w in gradients.weights) ** 0.5)
    assert float(gradients.flat[:-3].double().norm()) == pytest.approx(1, rel=1e-3)


def test_with_one_process_nothing_is_grouped_or_copied(data):
    model, _ = drawn(data)
    gradients = distributed.Gradients(model.parameters())
    assert not hasattr(gradients, "flat")
    loss = torch.ones(())
    assert gradients.add_up(loss, loss) == (loss, loss)
    assert distributed.part([1, 2, 3]) == distributed.gathered([1, 2, 3]) == [1, 2, 3]
    assert not torch.distributed.is_initialized()
    assert distributed.start(CPU) == CPU


def test_random_numbers_are_those_of_the_row():
    torch.manual_seed(0)
    whole = drawn_like(torch.empty(6, 3), None, torch.Tensor.exponential_)
    torch.manual_seed(0)
    share = Share(3, torch.tensor([2])).repeated(2)
    assert share.rows.tolist() == [4, 5]
    part = drawn_like(torch.empty(2, 3), share, torch.Tensor.exponential_)
    assert torch.equal(part, whole[4:])


@pytest.mark.parametrize(
    ("device", "n_gpus", "message"),
    [("cuda", 1, "1 GPU.s. here: give torchrun --nproc-per-node 1"), ("mps", 0, "--device cpu")],
)
def test_a_process_without_a_device_of_its_own(monkeypatch, device, n_gpus, message):
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    with pytest.raises(UserError, match=message):
        distributed.start(torch.device(device))
