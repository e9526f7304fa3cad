"""Several processes on one machine: forked, so that imports are paid once, and joined by gloo."""

import os
import signal
import socket
import sys
import traceback

import torch


def run(work, *, processes=2, environment=None):
    """Fork processes that each call `work(rank)`; return their exit codes. The children share nothing but files.

    Once one has failed the others are killed, as `torchrun` does: they would wait for it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            _be(rank, processes, port, environment or {}, work)
        children.append(child)
    codes = {}
    while len(codes) < processes:
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:
            for other in children:
                if other not in codes:
                    os.kill(other, signal.SIGKILL)
    return [codes[child] for child in children]


def _be(rank, processes, port, environment, work):
    code = 1
    try:
        torch.set_num_threads(1)
        ids = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({key: str(value) for key, value in ids.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
        os.environ.update(environment)
        work(rank)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
