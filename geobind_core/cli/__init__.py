"""The command line: parses and dispatches. What a verb does is imported when it is called."""

from geobind_core.cli.verbs import app as app
from geobind_core.cli.verbs import main as main
