"""``python -m atriz_database`` is the ``atriz`` command."""

from atriz_database.cli.main import main

main()
