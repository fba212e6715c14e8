"""Do two machines train what one trains, also when one fails or the cable is pulled?

    sudo python benchmarks/machines.py

The machines are network namespaces of this one, with names and addresses of their own and a cable
between them (Linux, iproute2); they share its files. Stage 1, a process each, gloo.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import ROOT, Row, tell
from bench import main as run_benchmark

sys.path.insert(0, str(ROOT / "tests"))

from torchrun import Done, difference, do, draw, flags_of, scores_differ, start, stop_after

from cli import UserError

HOSTS = {"captions0": "10.77.0.1", "captions1": "10.77.0.2"}  # their namespaces, addresses
CABLES = ("cable0", "cable1")
PATIENCE = 150  # seconds
# torch's own store keeps the address of a process that died (pytorch/pytorch#135712).
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "DISTRIBUTED_TIMEOUT": "20"}


def ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True)


@contextmanager
def two_machines() -> Iterator[None]:
    """Set them up, and take them away again, also what a killed run of this left."""
    _remove()
    try:
        for name in HOSTS:
            ip("netns", "add", name)
            config = Path("/etc/netns") / name
            config.mkdir(parents=True)
            names = "".join(f"{address} {host}\n" for host, address in HOSTS.items())
            (config / "hosts").write_text(f"127.0.0.1 localhost\n{names}")  # /etc/hosts there
        ip("link", "add", CABLES[0], "type", "veth", "peer", "name", CABLES[1])
        for (name, address), cable in zip(HOSTS.items(), CABLES, strict=True):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            for link in (cable, "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield
    finally:
        _remove()


def _remove() -> None:
    for name in HOSTS:
        subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


def train(folder: Path, flags: list[str], *, what: str = "", restarts: int = 0) -> list[Done]:
    """The same command on both machines."""
    processes = []
    for name in HOSTS:
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-id", folder.name, "--rdzv-endpoint"]
        nodes = ["--nnodes", "2", *rendezvous, f"{HOSTS['captions0']}:29400"]
        on = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c"]
        on += [f'hostname {name}; exec "$@"', "sh"]
        processes.append(
            start(folder, flags, n=1, what=what, nodes=nodes, prefix=on,
                  torchrun=["--max-restarts", str(restarts)], **ENVIRONMENT)
        )  # fmt: skip
    found = []
    for process in processes:
        try:
            _, stderr = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:  # torchrun itself, whose own store is behind the cable
            process.kill()
            _, stderr = process.communicate()
        found.append(Done(folder, process.returncode, stderr))
    return found


def compared(question: str, one: Done, two: list[Done]) -> Row:
    if any(done.status for done in two):
        raise UserError(f"{question} failed: {two[0].stderr[-800:]}\n{two[1].stderr[-800:]}")
    note = f"validation scores by {scores_differ(one, two[0]):.1e}"
    return Row(question, [difference(one, two[0])], "", 1e-5, at_most=True, note=note)


def main() -> None:
    with tempfile.TemporaryDirectory() as name, two_machines():
        folder = Path(name)
        scenes = draw(folder / "scenes", 60)
        one = do(folder / "one", flags_of(scenes, folder / "one"), n=1)
        two = train(folder / "two", flags_of(scenes, folder / "two"))
        rows = [compared("two machines against one process: weights differ by", one, two)]

        killed = train(
            folder / "killed",
            flags_of(scenes, folder / "killed"),
            what=stop_after(5, "SIGKILL"),
            restarts=3,
        )
        rows.append(compared("the same, a process killed by SIGKILL and restarted", one, killed))

        pull = f"if rank == 1 and state.step == 5: os.system('ip link set {CABLES[1]} down')"
        pulled = train(folder / "pulled", flags_of(scenes, folder / "pulled"), what=pull)
        lost = sum("lost another" in done.stderr for done in pulled)
        saved = "nothing is lost" in pulled[0].stderr
        rows.append(
            Row("the cable pulled out: machines that end with a message", [lost], "", 2,
                note=f"the first {'saved' if saved else 'DID NOT SAVE'} the run")
        )  # fmt: skip
        tell(rows)


if __name__ == "__main__":
    run_benchmark(main)
