"""The child's side of `guard.py`: ties itself to its parent's life, then becomes the program it was asked to start.

Run as a script, by path, with the standard library only: it must be quick, and must not import the package. The rules:

- "pdeathsig" (Linux): the kernel sends SIGKILL when the parent ends. The wish survives exec. A parent that ended
  before the wish was spoken would be missed, so the parent's id is compared afterwards; prctl(2).
- "watchdog" (elsewhere): a forked process holds the reading end of a pipe that only the parent can write to; the pipe
  ends with the parent, and the watchdog then kills the program. A second pipe, open in the program, ends the watchdog
  when the program is gone, so that it never kills a stranger that got the same id.
"""

from __future__ import annotations

import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1
EXIT_NOT_STARTED = 127  # as a shell says it


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL at the end of the thread that started this process."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(EXIT_NOT_STARTED)


def leave_a_watchdog(lifeline: int) -> None:
    """Fork the process that kills this one once nobody can write to the pipe `lifeline` any more."""
    program = os.getpid()
    ends_with_program, open_in_program = os.pipe()
    if os.fork() == 0:
        os.close(open_in_program)
        watch(program, lifeline, ends_with_program)
        os._exit(0)
    os.close(ends_with_program)
    os.close(lifeline)
    os.set_inheritable(open_in_program, True)


def watch(program: int, lifeline: int, ends_with_program: int) -> None:
    """Wait until the parent or the program is gone; in the first case, kill the program."""
    # Whatever else was inherited (a log's pipe, a folder's lock) must not live on in the watchdog.
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    for fd in os.listdir("/dev/fd"):  # noqa: PTH208 (pathlib would cost a quick script its start)
        if int(fd) > 2 and int(fd) not in (lifeline, ends_with_program):
            try:
                os.close(int(fd))
            except OSError:
                pass  # the folder listing's own
    gone, _, _ = select.select([lifeline, ends_with_program], [], [])
    if ends_with_program not in gone and os.getppid() == program:
        os.kill(program, signal.SIGKILL)


def main() -> None:
    method, parent, lifeline, *command = sys.argv[1:]
    try:
        if method == "pdeathsig":
            die_with_parent(int(parent))
        else:
            leave_a_watchdog(int(lifeline))
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]} could not be started: {error}", file=sys.stderr)
        sys.exit(EXIT_NOT_STARTED)


if __name__ == "__main__":
    main()
