"""A GPU that is none: tensors that claim to be on another device, and compute on the CPU.

    python tests/fake_cuda.py       # trains, validates and predicts on it; figures as JSON

Unlike FakeTensorMode it holds real values, so loops that ask for values run, and backward works
where there is no CUDA driver. What a GPU refuses is refused: operations on tensors of two devices,
`.numpy()`. What it does silently and slowly is counted: launches, waits of the host, copies each
way, by the line of the project that asked.

The device is PrivateUse1 under the name "fake", whose tensors say `is_cuda`. autocast is imitated
as CUDA's is: linear and convolution in bfloat16, cuDNN's LSTM in float16, softmax in float32, cat
promotes. Not imitated: cuDNN's flat weights, streams, pinned memory, device-side asserts. Threads
must leave the device alone: PyTorch's modes, by which this works, belong to a thread.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import statistics
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("fake")
DEVICE = torch.device("fake", 0)
CPU = torch.device("cpu")


class On(torch.Tensor):
    """A tensor on the device; `real_` has its values."""

    @staticmethod
    def __new__(cls, real):
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(),
            dtype=real.dtype, layout=real.layout, device=DEVICE,
        )  # fmt: skip
        made.real_ = real
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_cuda = True

    def __repr__(self):
        return f"On({self.real_!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Seen.current.dispatch(func, args, kwargs or {})


def real(value):
    return value.real_ if isinstance(value, On) else value


# Kernels that CUDA starts for one operation, where it is not one; rough, from ATen's sources.
# multinomial checks by _assert_async (torch 2.14): no wait, but a device-side assert.
KERNELS = {"nonzero": 4, "sort": 4, "topk": 3, "multinomial": 16, "index_put_": 2, "cumsum": 2,
           "native_batch_norm": 2, "convolution_backward": 3, "embedding_dense_backward": 6,
           "convolution": 2}  # fmt: skip
WAITS = {"_local_scalar_dense": 1, "nonzero": 1, "equal": 1, "masked_select": 1}
FREE = {"empty", "empty_strided", "empty_like", "new_empty", "detach", "set_", "resize_",
        "new_empty_strided", "is_pinned", "lift_fresh"}  # fmt: skip
MAY_MIX = {"copy_", "_to_copy", "set_"}
INDEXING = {"index", "index_put_", "_index_put_impl_", "index_put"}


class Seen(TorchDispatchMode):
    """What the device was asked to do."""

    current: Seen | None = None

    def __init__(self, project: str = ""):
        super().__init__()
        self.project = project
        self.clear()

    def clear(self):
        self.n = Counter()  # launches, waits, to_device, to_host; and bytes
        self.ops, self.lines, self.mixed = Counter(), Counter(), Counter()

    def where(self):
        for frame in reversed(traceback.extract_stack(limit=40)):
            is_ours = self.project and frame.filename.startswith(self.project)
            if is_ours and ".venv" not in frame.filename:
                return f"{Path(frame.filename).name}:{frame.lineno}"
        return "backward, or elsewhere"

    def count(self, what, n=1, n_bytes=0):
        self.n[what] += n
        if n_bytes:
            self.n[f"{what} bytes"] += n_bytes
        if what != "launches":
            self.lines[what, self.where()] += n

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.dispatch(func, args, kwargs or {})

    def dispatch(self, func, args, kwargs):
        name = func._schema.name.split("::")[1]
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        ours = [x for x in tensors if isinstance(x, On)]
        wanted = kwargs.get("device")
        wanted = torch.device(wanted) if wanted is not None else None
        to_us = wanted is not None and wanted.type == "fake"
        if not ours and not to_us:
            return func(*args, **kwargs)
        if func._can_decompose() and name != "is_pinned":
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        self.refuse_mixed(func, name, args, tensors, ours)
        on_host = wanted is not None and wanted.type == "cpu"
        if name == "copy_":
            self.copy(args[0], args[1])
        elif name == "_to_copy" and wanted is not None:
            source = args[0]
            if isinstance(source, On) and on_host:
                self.count("to_host", n_bytes=source.nbytes)
                self.count("waits")
            elif not isinstance(source, On) and to_us:
                self.count("to_device", n_bytes=source.nbytes)
            else:
                self.launch(name, func._schema)
        else:
            self.launch(name, func._schema)
            if WAITS.get(name):
                self.count("waits", WAITS[name])
            if name in INDEXING:
                self.index(name, args[1])
        if wanted is not None:
            kwargs = {**kwargs, "device": CPU}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        inner_args, inner_kwargs = pytree.tree_map(real, (args, kwargs))
        made = func(*inner_args, **inner_kwargs)
        if name == "_local_scalar_dense" or on_host:
            return made
        return self.wrapped(func, args, kwargs, made)

    def launch(self, name, schema):
        returns = schema.returns
        is_view = bool(returns) and returns[0].alias_info and not returns[0].alias_info.is_write
        if is_view or name in FREE:
            return
        self.ops[name] += 1
        self.n["launches"] += KERNELS.get(name, 1)

    def index(self, name, indices):
        """A boolean mask is a nonzero, for which the host waits; an index may be on the CPU."""
        indices = [i for i in pytree.tree_leaves(indices) if isinstance(i, torch.Tensor)]
        n_masks = sum(i.dtype in (torch.bool, torch.uint8) for i in indices)
        if n_masks:
            self.count("waits", n_masks)
            self.n["launches"] += 4 * n_masks
        for index in indices:
            if not isinstance(index, On):
                self.count("to_device", n_bytes=index.nbytes)
                self.mixed[f"{name} with an index on the CPU", self.where()] += 1

    def copy(self, into, source):
        if isinstance(into, On) and not isinstance(source, On):
            self.count("to_device", n_bytes=source.nbytes)
        elif isinstance(source, On) and not isinstance(into, On):
            self.count("to_host", n_bytes=source.nbytes)
            self.count("waits")
        else:
            self.n["launches"] += 1
            self.ops["copy_"] += 1

    def refuse_mixed(self, func, name, args, tensors, ours):
        if name in MAY_MIX or not ours:
            return
        theirs = [x for x in tensors if not isinstance(x, On) and x.dim() > 0]
        if name in INDEXING:
            indices = [i for i in pytree.tree_leaves(args[1]) if isinstance(i, torch.Tensor)]
            theirs = [x for x in theirs if not any(x is i for i in indices)]
        if theirs:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, "
                f"fake:0 and cpu! ({func}, shapes {[tuple(x.shape) for x in tensors]})"
            )

    def wrapped(self, func, args, kwargs, made):
        """The results as tensors of the device; what was written into is itself again."""
        schema = func._schema
        if not schema.returns:
            return None
        ours = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, On)]
        given = {a.name: v for a, v in zip(schema.arguments, args, strict=False)} | kwargs
        out = []
        parts = made if isinstance(made, tuple) else (made,)
        for part, spec in zip(parts, schema.returns, strict=True):
            alias = spec.alias_info
            if alias and alias.is_write and isinstance(part, torch.Tensor):
                same = [given[a.name] for a in schema.arguments
                        if a.alias_info and a.alias_info.is_write and a.name in given
                        and a.alias_info.before_set == alias.before_set]  # fmt: skip
                out.append(same[0])
            elif alias and ours:  # a view of a normal tensor is one, in inference mode too
                with torch.inference_mode(ours[0].is_inference()):
                    out.append(pytree.tree_map_only(torch.Tensor, On, part))
            else:
                out.append(pytree.tree_map_only(torch.Tensor, On, part))
        return tuple(out) if isinstance(made, tuple) else out[0]


class _Lstm(torch.autograd.Function):
    """cuDNN's LSTM: one operation forward and one backward."""

    @staticmethod
    def forward(ctx, half, flags, x, h, c, *weights):
        with torch.enable_grad(), torch.inference_mode(False):
            kept = [t.real_.detach().float().clone() for t in (x, h, c, *weights)]
            kept = [t.clone().detach().requires_grad_() for t in kept]
            made = torch._VF.lstm(kept[0], (kept[1], kept[2]), kept[3:], *flags)
        ctx.kept, ctx.made = kept, made
        ctx.dtypes = [t.dtype for t in (x, h, c, *weights)]
        seen = Seen.current
        seen.ops["cudnn lstm in float16" if half else "cudnn lstm"] += 1
        seen.n["launches"] += 8 + (9 if half else 0)  # a guess, the weights' casts among them
        seen.n["lstm steps"] += x.shape[1]
        return tuple(On(t.detach().to(torch.float16 if half else torch.float32)) for t in made)

    @staticmethod
    def backward(ctx, *gradients):
        seen = Seen.current
        seen.ops["cudnn lstm backward"] += 1
        seen.n["launches"] += 12
        given = [g.real_.float() if g is not None else torch.zeros_like(m)
                 for g, m in zip(gradients, ctx.made, strict=True)]  # fmt: skip
        with torch.enable_grad():
            found = torch.autograd.grad(ctx.made, ctx.kept, given)
        return None, None, *(On(g.to(d)) for g, d in zip(found, ctx.dtypes, strict=True))


class Calls(TorchFunctionMode):
    """`torch.tensor(..., device=)`, CUDA's LSTM, and autocast as CUDA has it."""

    half = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("tensor", "as_tensor") and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(device)
        if args and isinstance(args[0], On):
            if name in ("__setitem__", "__getitem__"):
                args = (args[0], _listless(args[1]), *args[2:])
                if len(args) == 3 and not isinstance(args[2], torch.Tensor):
                    # a number becomes a tensor there, at no copy
                    args = (*args[:2], On(torch.tensor(args[2], dtype=args[0].dtype)))
            if name == "tolist":
                return args[0].cpu().tolist()
            if name == "numpy":
                raise TypeError("can't convert fake:0 device type tensor to numpy. Use .cpu()")
            if name == "lstm":
                x, hx, weights, *flags = args
                return _Lstm.apply(Calls.half, flags, x, *hx, *weights)
        if Calls.half and name in ("linear", "conv2d", "matmul", "mm"):
            args, kwargs = pytree.tree_map(_low, (args, kwargs))
        if Calls.half and name in ("log_softmax", "softmax", "cumsum") and "dtype" not in kwargs:
            kwargs["dtype"] = torch.float32
        if Calls.half and name == "cat" and len({t.dtype for t in args[0]}) > 1:
            args = ([t.float() for t in args[0]], *args[1:])
        return func(*args, **kwargs)


def _low(value):
    is_low = isinstance(value, On) and value.is_floating_point()
    return value.to(torch.bfloat16) if is_low else value


def _listless(index):
    """A list of numbers in an index is copied to the device each time."""
    if isinstance(index, tuple):
        return tuple(_listless(part) for part in index)
    if isinstance(index, list):
        seen = Seen.current
        seen.mixed["a list as index: copied each time", seen.where()] += 1
        return torch.tensor(index).to(DEVICE)
    return index


@contextlib.contextmanager
def autocast_bfloat16(device, enabled=True):
    before, Calls.half = Calls.half, enabled and (Calls.half or device.type == "fake")
    try:
        yield
    finally:
        Calls.half = before


REAL_AUTOCAST = torch.autocast


def autocast(device_type, *args, **kwargs):
    """`torch.autocast`, which the project uses for CUDA only to turn it off."""
    if device_type == "cuda":
        return autocast_bfloat16(DEVICE, enabled=False)
    return REAL_AUTOCAST(device_type, *args, **kwargs)


@contextlib.contextmanager
def gpu(project: str = ""):
    """The project's modules, imported before, believe that there is a GPU; gives what it did."""
    import cli

    seen = Seen.current = Seen(project)
    load, save = torch.load, torch.save

    def load_there(*args, map_location=None, **kwargs):
        content = load(*args, map_location="cpu", **kwargs)
        if map_location is None or torch.device(map_location).type != "fake":
            return content
        return pytree.tree_map_only(torch.Tensor, lambda t: t.to(DEVICE), content)

    def plain(t):
        seen.count("to_host", n_bytes=t.nbytes)
        return t.real_.detach()

    def save_from_there(content, *args, **kwargs):
        with torch.no_grad():
            content = pytree.tree_map_only(On, plain, content)
        return save(content, *args, **kwargs)

    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    any_enabled = torch._C._is_any_autocast_enabled  # nn.LSTM compares dtypes unless there is
    new = {
        (cli, "device"): lambda _: DEVICE,
        (torch, "load"): load_there,
        (torch, "save"): save_from_there,
        (torch, "autocast"): autocast,
        (torch, "is_autocast_enabled"): lambda *a: (
            Calls.half if a in ((), ("fake",)) else enabled(*a)
        ),
        (torch, "get_autocast_dtype"): lambda d: torch.bfloat16 if d == "fake" else dtype(d),
        (torch._C, "_is_any_autocast_enabled"): lambda: Calls.half or any_enabled(),
    }
    for module in list(sys.modules.values()):
        if str(getattr(module, "__file__", "")).startswith(project or "?"):
            if hasattr(module, "autocast_bfloat16"):
                new[module, "autocast_bfloat16"] = autocast_bfloat16
            if hasattr(module, "has_bfloat16"):
                new[module, "has_bfloat16"] = lambda device: device.type == "fake"
    with replaced(new), Calls(), seen:
        yield seen


@contextlib.contextmanager
def replaced(new):
    """Give names of modules other values for a while: {(module, name): value}."""
    before = [(module, name, getattr(module, name)) for module, name in new]
    for (module, name), value in new.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def counted(seen):
    """Launches, waits of the host, and copies so far."""
    copies = seen.n["to_device"] + seen.n["to_host"]
    return {"launches": seen.n["launches"], "waits": seen.n["waits"], "copies": copies}


def of_a_step(seen: Seen, job: Callable[[], None]) -> dict[str, dict[str, float]]:
    """What a step of each stage asks of the device while a job trains."""
    import learning
    import train

    starts: dict[str, list[dict[str, int]]] = {}  # of each stage's steps
    under_way = ""
    seed_step, train_stage = learning.seed_step, train.train_stage

    def noted_step(*args):
        starts.setdefault(under_way, []).append(counted(seen))
        seed_step(*args)

    def noted_stage(settings, run, stage, *args):
        nonlocal under_way
        under_way = stage.name
        train_stage(settings, run, stage, *args)

    with replaced({(learning, "seed_step"): noted_step, (train, "train_stage"): noted_stage}):
        job()
    return {
        stage: {
            name: statistics.median(after[name] - before[name] for before, after in pairwise(steps))
            for name in steps[0]
        }
        for stage, steps in starts.items()
    }


@contextlib.contextmanager
def of_two_processes():
    """This process is the first of two, and the other's parts are empty: nothing waits for it."""
    import distributed

    new = {
        (distributed, "size"): 2,
        (distributed, "part"): lambda items: items,
        (distributed, "gathered"): list,
        (distributed, "everyones"): lambda value: [value, value],
        (torch.distributed, "all_reduce"): lambda flat: flat,
    }
    with replaced(new):
        yield


def run_all(folder: Path, seen: Seen) -> dict[str, dict[str, float]]:
    """Train all stages, also as one of two processes, resume, predict and evaluate.

    Returns:
        The figures of a step of each stage, and of a beam search of 64 images.
    """
    import checkpoint
    import demo
    import evaluate
    import predict
    import search
    import train
    from captioner import Captioner
    from explain import grad_cam
    from model import ImageCaptioningModel
    from pictures import read_image, transform

    demo.draw(folder / "data", n_scenes=72, size=32)
    encoder = ImageCaptioningModel(10, encoder="resnet18").encoder
    torch.save(encoder.state_dict(), folder / "resnet18.pth")

    def flags(**changed):
        all_flags = {
            **{"data": folder / "data", "captions": "results.csv", "checkpoints": folder / "run"},
            **{"runs": folder / "runs", "cache": folder / "cache", "encoder": "resnet18"},
            **{"encoder_weights": folder / "resnet18.pth", "image_size": 32, "epochs": 1},
            **{"embedding_size": 16, "hidden_size": 32, "finetune_epochs": 1, "scst_epochs": 1},
            **{"batch_size": 100, **changed},
        }
        return [part for n, v in all_flags.items() for part in (f"--{n.replace('_', '-')}", str(v))]

    def do(door, *argv):
        status = door.main(list(map(str, argv)))
        assert status == 0, f"{door.__name__} {argv}: exit status {status}"

    figures = of_a_step(seen, lambda: do(train, *flags()))
    figures["float16"] = {"lstm": seen.ops["cudnn lstm in float16"]}
    with of_two_processes():
        shared = of_a_step(seen, lambda: do(train, *flags(checkpoints=folder / "shared")))
    figures |= {f"{stage}, shared": figure for stage, figure in shared.items()}

    xe_only = {"finetune_epochs": 0, "scst_epochs": 0}
    do(train, *flags(checkpoints=folder / "scratch", encoder_weights="none", **xe_only))
    do(train, "--checkpoints", folder / "run", "--resume", "--scst-epochs", 2)
    best, last = folder / "run" / "best.pt", folder / "run" / "last.pt"
    do(train, *flags(checkpoints=folder / "init", init=best, **xe_only))
    seen.clear()
    do(predict, folder / "data", "--checkpoint", best, "--output", folder / "a.jsonl")
    sampled = ("--temperature", 0.8, "--top-p", 0.9, "--output", folder / "b.csv")
    do(predict, "--image", folder / "data", "--checkpoint", best, *sampled)
    do(evaluate, "--checkpoint", best, last, "--cache", folder / "other")
    photo = min((folder / "data").rglob("*.png"))
    do(predict, photo, "--explain", folder / "strip.png", "--checkpoint", best, last)
    captioner, pixels = Captioner.load(best), transform(read_image(photo), 32)
    grad_cam(captioner, pixels, captioner.describe(pixels.unsqueeze(0))[0][0].tokens)
    figures["doors"] = counted(seen)

    trained = checkpoint.load(best, DEVICE)
    features = torch.randn(64, trained.model.feature_size)
    seen.clear()
    search.caption([trained.model], [features], trained.search())
    return {**figures, "beam": counted(seen)}


if __name__ == "__main__":
    project = Path(__file__).parents[1]
    sys.path.insert(0, str(project))
    torch.set_num_threads(1)
    for name in ("checkpoint", "demo", "evaluate", "predict", "train"):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as name, gpu(str(project)) as seen:
        print(f"\n{json.dumps(run_all(Path(name), seen))}")
    sys.stdout.flush()
    os._exit(0)  # autograd's threads of a Python backend do not end by themselves
