"""The ``atriz`` command: a thin shell over :mod:`atriz_database.verbs`. The only part of the library that prints."""
