"""Test databases: a server kept between runs, a template of each package, and clones of it that never outlive a run.

No part of it knows pytest; the fixtures over it are in :mod:`atriz_database.pytest_plugin`.
"""
