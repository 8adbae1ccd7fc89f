"""The command line: argument -> call -> render."""

import os
import signal

if os.getpid() == 1:
    # In a container the kernel drops signals to process 1 that it has no handler for: a pod that is deleted while its
    # libraries are loading would go on until its grace period is over. Workers soon put a handler of their own here.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
