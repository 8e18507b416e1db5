"""Sphinx's settings."""

import sys
from pathlib import Path

import fencedlock

sys.path.insert(0, str(Path(__file__).parent))

project = "fencedlock"
author = "The fencedlock developers"
release = version = fencedlock.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest", "from_code"]
html_theme = "furo"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autoclass_content = "both"
exclude_patterns = ["_build", "decisions/README.md"]
nitpicky = False

doctest_global_setup = """
import tempfile, fencedlock
folder = tempfile.mkdtemp(prefix="fl")
client = fencedlock.configure(f"embedded://{folder}", ttl=10)
"""
doctest_global_cleanup = """
client.close()
import fcntl, shutil
with open(folder + "/server.lock", "a") as alive:
    fcntl.flock(alive, fcntl.LOCK_EX)  # the server's guardian has it until both have ended
shutil.rmtree(folder)
"""
