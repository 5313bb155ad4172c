"""Spark's folder as the image has it."""

from pathlib import Path

import pytest


@pytest.fixture
def spark_home(tmp_path: Path) -> Path:
    """Links to the folders of pip's Spark, in a folder that executors may write to."""
    import pyspark

    home = tmp_path / "spark"
    home.mkdir()
    for name in ("bin", "sbin", "jars", "python"):
        (home / name).symlink_to(Path(pyspark.__file__).parent / name)
    return home
