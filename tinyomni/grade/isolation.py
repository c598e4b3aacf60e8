"""A process for a submission: a supervisor starts it, limits it, and ends it with all of its descendants.

    grader ── supervisor ── [first process of a PID namespace] ── worker, which runs the submission ── its descendants

Each mode is the strongest that the system allows:

    namespaces   Linux, where user namespaces are allowed: all processes of the namespace end with its first one. The
                 disk is read-only except for a working folder in memory, there is no network, no capability is left.
    subreaper    Linux: descendants that leave the session become children of the supervisor, which ends them.
    group        elsewhere: the process group ends; a descendant that starts a session of its own survives.

This is not a sandbox against an attacker: the kernel is shared, and whatever the grading user can read, the submission
can read. In the modes `subreaper` and `group` it can also write what that user can write, use the network, and kill the
supervisor. Who grades strangers' code does it in a virtual machine or a container that is thrown away.

Only the standard library is imported here: the supervisor should start at once. Where the worker is a function and not
a command, supervisor and worker are forked from a server that has imported everything, and nothing is imported twice.
Sources: namespaces(7), pid_namespaces(7), mount_setattr(2), prctl(2).
"""

import contextlib
import ctypes
import json
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import os
import queue
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType, ModuleType
from typing import IO, Any, NamedTuple, NoReturn

MODES = ("namespaces", "subreaper", "group")
FORKS = sys.platform == "linux"  # elsewhere a forked process is not safe, or impossible
MB = 2**20
MAX_REPLIES = 128 * MB  # all that one worker may send
PATIENCE = 2  # the time limit is one of processor time; asleep, or on a busy machine, it may take so many times as long
STARTING = threading.Lock()
POLL = 0.1  # seconds between two looks at a running worker

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 27, 1 << 28, 1 << 29, 1 << 30
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
LAST_CAPABILITY = 63  # more than any kernel has


@dataclass(frozen=True)
class Limits:
    """What a submission may use: processor time for each step (a cell, or an exercise), seconds for all of them; the
    others at a time.
    """

    seconds: float = 30.0
    total_seconds: float = 600.0
    memory_mb: int = 3000
    processes: int = 64
    output_mb: int = 16
    files_mb: int = 256
    open_files: int = 512


class EndedEarly(Exception):
    """The worker is gone; the text says why."""


Command = list[str] | Callable[[], int]  # a program, or a function for a forked process


# ---- the grader's side ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """A forked process would run the grader's own script again, and needs nothing of it."""
    with STARTING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def warm_up() -> multiprocessing.context.ForkServerContext:
    """Start the server of forked processes, which takes seconds for its imports; once is enough."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tinyomni.grade.preloaded"])
    multiprocessing.forkserver.ensure_running()
    return context


class Forked:
    """A supervised worker from the server of forked processes, with the part of Popen's interface that is used here."""

    def __init__(self, mode: str, worker: Callable[[], int], folder: Path, env: dict[str, str], limits: Limits) -> None:
        pipes = [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        channels = [Connection(end, readable=not number, writable=bool(number)) for number, end in enumerate(theirs)]
        self.stdin, self.stdout, self.stderr = (
            os.fdopen(end, kind) for end, kind in ((pipes[0][1], "wb"), (pipes[1][0], "rb"), (pipes[2][0], "rb"))
        )
        arguments = (mode, folder, limits, env, worker, channels)
        with without_main():
            self.process = warm_up().Process(target=supervise_fork, args=arguments, daemon=True)
            self.process.start()
        for channel in channels:
            channel.close()

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return int(self.process.pid or 0)

    @property
    def returncode(self) -> int | None:
        """As Popen gives it."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """None while it runs."""
        return self.process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        """Raises TimeoutExpired."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", seconds or 0)
        return self.process.exitcode

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()


class Worker:
    """A process that answers requests, one at a time. `ask` raises EndedEarly when it breaks a limit or is gone."""

    def __init__(self, mode: str, command: Command, folder: Path, env: dict[str, str], limits: Limits) -> None:
        self.limits, self.folder = limits, folder
        self.process: subprocess.Popen[bytes] | Forked
        if callable(command):
            self.process = Forked(mode, command, folder, env, limits)
        else:
            supervised = [sys.executable, "-m", __name__, mode, str(folder), json.dumps(asdict(limits)), *command]
            self.process = subprocess.Popen(
                command if mode == "group" else supervised, cwd=folder, env=env, start_new_session=os.name != "nt",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        self.grouped = mode == "group" and os.name != "nt"
        self.shared_memory = 0  # resident bytes that it shares with the server it was forked from
        self.written, self.received, self.tail = 0, 0, deque[bytes](maxlen=8)
        self.replies: queue.Queue[bytes] = queue.Queue()
        assert self.process.stdout and self.process.stderr
        self.threads = [
            threading.Thread(target=self._collect_replies, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._drain, args=(self.process.stderr,), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def _collect_replies(self, pipe: IO[bytes]) -> None:
        while (room := MAX_REPLIES - self.received) > 0 and (line := pipe.readline(room)):
            self.received += len(line)
            self.replies.put(line)

    def _drain(self, pipe: IO[bytes]) -> None:
        while block := os.read(pipe.fileno(), 1 << 16):
            self.written += len(block)
            self.tail.append(block[-2000:])

    @property
    def last_output(self) -> str:
        """The last line that it printed."""
        lines = b"".join(self.tail).decode(errors="replace").strip().splitlines()
        return printable(lines[-1][:200]) if lines else ""

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request; the reply to it. Replies to anything else, such as forged ones, are dropped."""
        number = secrets.token_hex(8)
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(request | {"id": number}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise EndedEarly(self.describe_end()) from error
        deadline, watch = time.monotonic() + PATIENCE * seconds, 0.0
        used = usage_of_tree(self.process.pid).seconds
        while True:
            if (now := time.monotonic()) >= watch:
                spent = self.check_limits() - used
                watch = now + POLL
            if now > deadline or spent > seconds:
                raise EndedEarly(f"ran longer than the time limit of {seconds:.3g} s")
            ended = self.process.poll() is not None
            if ended:  # what it sent last is still to be read, unless a survivor holds the channel open
                self.threads[0].join(1)
            try:
                line = self.replies.get(timeout=0 if ended else min(POLL, max(deadline - now, 0.001)))
            except queue.Empty:
                if ended:
                    raise EndedEarly(self.describe_end()) from None
                continue
            try:
                reply = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(reply, dict) and reply.get("id") == number:
                if not self.shared_memory and isinstance(self.process, Forked):
                    self.shared_memory = usage_of_tree(self.process.pid).memory
                return reply

    def check_limits(self) -> float:
        """The processor time it has taken so far. Raises EndedEarly if it uses more of anything else than it may."""
        if self.received >= MAX_REPLIES:
            raise EndedEarly("flooded its channel to the grader")
        if self.written > self.limits.output_mb * MB:
            raise EndedEarly(f"wrote more than {self.limits.output_mb} MB of output")
        usage = usage_of_tree(self.process.pid)
        if usage.processes > self.limits.processes:
            raise EndedEarly(f"started more than {self.limits.processes} processes")
        if usage.memory - self.shared_memory > self.limits.memory_mb * MB:
            raise EndedEarly(f"used more than {self.limits.memory_mb} MB of memory")
        if folder_size(self.folder) > self.limits.files_mb * MB:
            raise EndedEarly(f"wrote more than {self.limits.files_mb} MB of files")
        return usage.seconds

    def describe_end(self) -> str:
        """How the process ended."""
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return "ended early: it closed its channel to the grader"
        if status < 0 or status > 128:
            number = -status if status < 0 else status - 128
            names = {each.value: each.name for each in signal.Signals}
            return f"ended early: killed by {names.get(number, f'signal {number}')}"
        return f"ended early: the process exited with status {status}"

    def stop(self) -> None:
        """End it and everything that it started."""
        if self.process.poll() is None:
            self.process.terminate()  # the supervisor ends all the others first
            try:
                self.process.wait(10 if not self.grouped else 0.1)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if self.grouped:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for thread in self.threads:
            thread.join(1)  # a survivor in mode `group` may hold the other side of the pipe
        for pipe, thread in zip((self.process.stdout, self.process.stderr), self.threads, strict=True):
            if pipe and not thread.is_alive():
                pipe.close()
        if self.process.stdin:
            with contextlib.suppress(OSError):  # unsent bytes for a process that is gone
                self.process.stdin.close()


def printable(text: str) -> str:
    """Without control characters, which could rewrite the terminal of whoever reads it."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)


class Usage(NamedTuple):
    """Of a process and its descendants: resident bytes, number, and seconds of processor time."""

    memory: int = 0
    processes: int = 0
    seconds: float = 0.0


def usage_of_tree(root: int) -> Usage:
    """Zeros where there is no /proc."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    ticks: dict[int, int] = {}
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return Usage()
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended
        fields = stat.rpartition(")")[2].split()
        parents[pid], resident[pid] = int(fields[1]), int(fields[21])
        ticks[pid] = sum(map(int, fields[11:15]))  # its own, and those of children that have ended
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found, open_ones = [], [root]
    while open_ones:
        pid = open_ones.pop()
        found.append(pid)
        open_ones += children.get(pid, [])
    memory = sum(resident.get(pid, 0) for pid in found) * os.sysconf("SC_PAGE_SIZE")
    return Usage(memory, len(found), sum(ticks.get(pid, 0) for pid in found) / os.sysconf("SC_CLK_TCK"))


def folder_size(folder: Path) -> int:
    """Bytes of all files in it; in mode `namespaces` they lie in memory of a limited size, unseen from here."""
    size = 0
    for top, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(top, name)).st_blocks * 512 if os.name != "nt" else 0
            except OSError:
                continue  # removed in the meantime
    return size


# ---- the supervisor -------------------------------------------------------------------------------------------------


def libc_call(name: str, *arguments: Any) -> int:
    """Call a function of the C library. Raises OSError if it returns -1."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(getattr(libc, name)(*arguments))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int) -> None:
    """A setting of this process."""
    libc_call("prctl", option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    libc_call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def set_limits(limits: Limits) -> None:
    """Limits that the kernel enforces; that of memory is set by the worker, when its libraries are loaded."""
    import resource

    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.files_mb * MB),
        (resource.RLIMIT_NOFILE, limits.open_files),
    ):
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


def supervise_fork(
    mode: str, folder: Path, limits: Limits, env: dict[str, str], worker: Callable[[], int], channels: list[Connection]
) -> NoReturn:
    """In a process that was forked from the server: take the three channels, then supervise the worker."""
    status = 1
    try:
        os.setsid()
        for number, channel in enumerate(channels):
            os.dup2(channel.fileno(), number)
            channel.close()
        os.environ.clear()
        os.environ.update(env)
        sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
        os.chdir(folder)
        status = supervise(mode, folder, limits, worker)
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(status)


def supervise(mode: str, folder: Path, limits: Limits, command: Command) -> int:
    """Run the command; its status, as a shell gives it. SIGTERM ends it with all of its descendants."""
    signal.signal(signal.SIGTERM, stop)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the grader is killed: so is this
    set_limits(limits)
    notebooks = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    if mode == "subreaper":
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            return reap_until(start(command, folder))
        finally:
            kill_children()
    enter_namespaces()
    first = os.fork()
    if first == 0:
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            restrict_files(folder, limits, notebooks)
            bring_up_loopback()
            drop_capabilities()
            os._exit(reap_until(start(command, folder)))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    try:
        return reap_until(first)
    finally:
        kill_children()


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of SIGTERM."""
    raise SystemExit(128 + number)


def start(command: Command, folder: Path) -> int:
    """Start the worker, which ends with its parent; its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.setsid()
            os.chdir(folder)
            if callable(command):
                os.closerange(3, 65536)  # what belongs to the server
                os._exit(command())
            os.execv(command[0], command)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(127)
    return pid


def reap_until(pid: int) -> int:
    """Wait for every child that ends, until this one does; its status, as a shell gives it."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def kill_children() -> None:
    """End all children until none is left; orphaned grandchildren become children of this process in their turn."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        for name in os.listdir("/proc"):
            try:
                if name.isdigit() and parent_of(int(name)) == os.getpid():
                    os.kill(int(name), signal.SIGKILL)
            except (OSError, ValueError):
                continue  # it has ended
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def parent_of(pid: int) -> int:
    """The id of the parent process."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])


def enter_namespaces() -> None:
    """Namespaces for users, network, shared memory and, from the next child on, processes."""
    user, group = os.getuid(), os.getgid()
    libc_call("unshare", CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def restrict_files(folder: Path, limits: Limits, contents: dict[str, bytes]) -> None:
    """Everything read-only, except for a working folder in memory, with these files in it."""
    libc_call("unshare", CLONE_NEWNS)
    mount("none", "/", "none", MS_REC | MS_PRIVATE)
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    libc_call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes)))
    for target in (str(folder), "/dev/shm"):
        mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, f"size={limits.files_mb}m,nr_inodes=20k,mode=700")
    with contextlib.suppress(OSError):  # some containers forbid it: processes outside stay visible, but out of reach
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "tmp").mkdir()


def bring_up_loopback() -> None:
    """127.0.0.1 of the empty network: processes of one submission may talk to each other."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def drop_capabilities() -> None:
    """Nothing that is started from here can undo what was set up, not even as root."""
    for capability in range(LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            break  # this kernel has no more of them
    prctl(PR_SET_NO_NEW_PRIVS, 1)


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1], Path(sys.argv[2]), Limits(**json.loads(sys.argv[3])), sys.argv[4:]))
