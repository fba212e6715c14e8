"""Real processes under torchrun, on a CPU: what N train is what one trains."""

import os
import shutil
import signal
import socket

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from torchrun import CPU, difference, do, draw, flags_of, resume, start, stop_after

import agreement
import cli
import distributed
import learning
import run
import train
from cli import UserError
from corpus import load_corpus
from draws import Share, drawn_like
from learning import TrainState
from loader import Flickr30k, Vocabulary, batches, plan_batches
from model import ImageCaptioningModel


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("data"), n_scenes=60)


def assert_same_training(done, other, *, within=1e-5):
    assert (done.status, other.status) == (0, 0), done.stderr[-2000:] + other.stderr[-2000:]
    np.testing.assert_allclose(done.losses(), other.losses(), rtol=within)
    assert done.last()["scores"] == pytest.approx(other.last()["scores"], rel=within)
    assert difference(other, done) < within


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """One process through stage 1."""
    folder = tmp_path_factory.mktemp("alone")
    return do(folder, flags_of(data, folder), n=1)


def test_several_processes_train_what_one_trains(data, tmp_path):
    """All stages; in float64, since rounding grows where an encoder learns.

    A batch of two images leaves one of three processes without a part. benchmarks/processes.py
    takes more steps, in float32 too.
    """
    changed = {"batch_size": 10, "finetune_epochs": 1, "finetune_layers": 1, "scst_epochs": 1}
    one, three = (
        do(tmp_path / str(n), flags_of(data, tmp_path / str(n), **changed), n=n, float64=True)
        for n in (1, 3)
    )
    assert all(len(one.losses(stage)) >= 25 for stage in ("xe", "finetune", "scst"))
    assert_same_training(three, one, within=1e-9)
    assert three.stderr.count("xe 1/1  loss") == 1  # the others are silent


def test_resume_with_another_number_of_processes(data, tmp_path, alone):
    """A signal to any process ends all after the same step: 2, then 3, then 1."""
    first = do(tmp_path, flags_of(data, tmp_path), n=2, what=stop_after(3))
    assert first.status != 0
    assert "nothing is lost" in first.stderr
    assert first.steps() == 4  # which told the others
    second = resume(tmp_path, n=3, what=stop_after(7, rank=2))
    assert second.steps() == 8
    assert_same_training(resume(tmp_path, n=1), alone)


def test_a_killed_worker_is_restarted_and_resumes(data, tmp_path, alone):
    done = do(tmp_path, flags_of(data, tmp_path), n=2, what=stop_after(5, "SIGKILL"),
              torchrun=["--max-restarts", "3"])  # fmt: skip
    assert_same_training(done, alone)
    assert done.stderr.count("resumed     in xe, epoch 1, after step ") == 1


def test_a_restart_does_not_resume_an_earlier_run(data, tmp_path, alone):
    """Killed before it had saved anything, it begins again; what is in the folder is another's."""
    shutil.copytree(alone.folder / "checkpoints", tmp_path / "checkpoints")
    done = do(tmp_path, flags_of(data, tmp_path), n=2, what=stop_after(2, "SIGKILL", rank=0),
              torchrun=["--max-restarts", "1"])  # fmt: skip
    assert_same_training(done, alone)
    assert "resumed" not in done.stderr


def test_a_process_that_does_not_answer_ends_in_a_message(data, tmp_path):
    flags = flags_of(data, tmp_path)
    process = start(
        tmp_path, flags, n=2, what=stop_after(2, "SIGSTOP"), DISTRIBUTED_TIMEOUT="5",
        before='rank == 1 and open("pid", "w").write(str(os.getpid()))',
        torchrun=["--log-dir", str(tmp_path / "logs")],
    )  # fmt: skip
    lines = []
    with process:
        for line in process.stderr:
            lines.append(line)
            if "did not answer for 5 seconds" in line:  # torchrun waits 30 more for the silent one
                os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert process.returncode != 0
    assert any("error: process 0 on" in line and "did not answer" in line for line in lines)
    assert any("nothing is lost" in line for line in lines)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "data$RANK"}, "process 1 on {host}: "),
        ({"batch_size": "2$RANK"}, "the processes differ in --batch-size: 21 in number 1 on"),
    ],
)
def test_processes_that_do_not_fit_together_are_told_so_once(data, tmp_path, changed, message):
    """`data1` is not there: as on a machine that lacks the folder."""
    shutil.copytree(data, tmp_path / "data0")
    done = do(tmp_path, flags_of(data, tmp_path, **changed), n=2)
    assert done.status != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message.format(host=socket.gethostname()) in errors[0]
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("what", ["data", "weights", "project", "torch", "step"])
def test_what_processes_have_to_agree_on(data, tmp_path, monkeypatch, what):
    """The facts of two processes, here collected one after the other."""
    collected = []

    def everyones(mine):
        collected.append(mine)
        return collected

    monkeypatch.setattr(distributed, "size", 2)
    monkeypatch.setattr(distributed, "everyones", everyones)
    (model, _), corpus, step = drawn(data), load_corpus(data), 0
    for _ in range(2):
        agreement.require({"batch_size": 20}, corpus, model, TrainState("xe"))
    del collected[1:]
    match what:
        case "data":
            rows = (data / "results.csv").read_text()
            shutil.copytree(data, tmp_path / "data")
            (tmp_path / "data" / "results.csv").write_text(rows.replace(" big ", " huge "))
            corpus = load_corpus(tmp_path / "data")
        case "weights":
            torch.nn.init.ones_(model.encoder.conv1.weight)
        case "project":
            monkeypatch.setattr(agreement, "__file__", str(tmp_path / "agreement.py"))
        case "torch":
            monkeypatch.setattr(torch, "__version__", "1.0")
        case "step":
            step = 7
    with pytest.raises(UserError, match=f"the processes differ in {what}: "):
        agreement.require({"batch_size": 20}, corpus, model, TrainState("xe", step=step))


def test_an_encoder_from_scratch_is_refused(data, tmp_path, monkeypatch):
    """Its BatchNorm would see the part of one process alone."""
    monkeypatch.setattr(distributed, "size", 2)
    flags = flags_of(data, tmp_path, encoder_weights="none")
    settings, _ = cli.parse(train.Settings, flags)
    with pytest.raises(UserError, match="2 processes cannot train an encoder from"):
        run.stages_left(train.make_stages(settings), None)


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
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # no bfloat16, which rounds more
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
