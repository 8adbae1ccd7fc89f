"""instructpt: Instruction Pre-Training (arXiv 2406.14491), from raw corpus to the answer whether it helped.

The public API: :func:`run` runs an object on this machine, :func:`load_resource` reads one from a file.
"""

from instructpt.api.version import VERSION as __version__
from instructpt.errors import InstructPTError
from instructpt.local.run import RunFailedError, run
from instructpt.local.spec_file import load_resource

__all__ = ["InstructPTError", "RunFailedError", "__version__", "load_resource", "run"]
