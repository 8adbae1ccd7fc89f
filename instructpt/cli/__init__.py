"""The command line: argument -> call -> render."""

import os
import signal
import sys

if os.getpid() == 1 or sys.argv[1:2] == ["worker"]:
    # A worker that is told to leave while its libraries are loading has nothing to lose, and says so by its exit code.
    # In a container the kernel even drops signals to process 1 that it has no handler for, so that a deleted pod would
    # stay until its grace period is over. Workers soon put a handler of their own here.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
