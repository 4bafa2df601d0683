import os

from builder.machine import core_environment

for _name, _value in core_environment().items():  # before numpy and mlx load an OpenBLAS, which reads it
    os.environ.setdefault(_name, _value)
