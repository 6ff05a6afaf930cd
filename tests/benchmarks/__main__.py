"""`python -m tests.benchmarks`: runs the benchmarks, prints a table, writes JSON."""

import os
import sys
import tempfile

# Before torch, numpy and huggingface_hub are imported, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="geobind-benchmarks-") as folder:
        os.environ["GEOBIND_CACHE"] = os.path.join(folder, "cache")  # noqa: PTH118 - nothing is imported yet
        from tests.benchmarks.command import run

        sys.exit(run(sys.argv[1:], folder))


if __name__ == "__main__":
    main()
