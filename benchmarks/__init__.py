"""What is fast and what is not, measured against floors and peers in one run: ``nox -s bench``."""
