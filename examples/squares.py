"""Squares of a thousand numbers on a farm.

python squares.py                  on a farm of its own on this machine
python squares.py host:50051       on the farm there, whose workers were started with --app squares.py
"""

import sys

import antfarm as af


@af.task
def square(x: int) -> int:
    return x * x


if __name__ == "__main__":
    with af.connect(*sys.argv[1:]) as farm:
        job = farm.map(square, range(1000))
        print(sum(job.results()))
