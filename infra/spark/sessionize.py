"""`spark-submit ... sessionize.py --ds D --config FILE`: the `fuxi sessionize` command, with Spark as submitted."""

import sys

from jobs.cli import main

sys.argv[1:1] = ["sessionize"]
main()
