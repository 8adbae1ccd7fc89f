"""``python -m instructpt``: the same as the ``instructpt`` command."""

from instructpt.cli.app import main

main()
