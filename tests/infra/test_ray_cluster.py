"""The cluster file is one that Ray's own launcher accepts."""

from pathlib import Path

import yaml

FILE = Path(__file__).parents[2] / "ray_cluster.yaml"


def test_ray_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(FILE.read_text())
    validate_config(prepare_config(config))


def test_nothing_in_it_listens_beyond_the_cluster_and_no_secret_is_in_it() -> None:
    text = FILE.read_text()
    assert "--dashboard-host=127.0.0.1" in text
    assert not any(word in text.lower() for word in ("aws_secret", "access_key", "password"))
