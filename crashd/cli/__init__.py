"""crashctl, the command for operators: the only package that prints and exits."""
