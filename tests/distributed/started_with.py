"""Imported by the fork server before all else: the environment of the test that was the first to need ranks."""

import os

ENVIRONMENT = dict(os.environ)
